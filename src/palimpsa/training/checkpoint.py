"""Checkpoints: how they are written, which of a run's can be gone on from, and what Lightning keeps to itself."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.checkpoints import is_sharded
from palimpsa.runs.directory import RunDirectory, config_changes, shortened
from palimpsa.runs.files import open_regular, write_atomic
from palimpsa.runs.identity import config_hash, with_key_expansion
from palimpsa.training.storage.sharded import CheckpointError, check_files, read_sharded

# Where a checkpoint keeps the config of its model, the hash of its run's, and the checksum of all else.
MODEL_CONFIG_KEY = "model_config"
RUN_KEY = "run_config_hash"
CHECKSUM_KEY = "sha256"
# What Lightning and a run need of one; those of older trees have no checksum that would tell.
NEEDED = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "global_step",
    "epoch",
    "pytorch-lightning_version",
)
# What a model is made of.
WEIGHTS = ("state_dict", "global_step", MODEL_CONFIG_KEY)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there: a kill in between leaves the previous one.

    Args:
        directory: whose last checkpoint is kept as its previous one.
        run_hash: of the run's config.

    Attributes:
        damaged: those that could not be read, and that are kept apart when the next one is written.
    """

    def __init__(self, directory: RunDirectory, run_hash: str) -> None:
        super().__init__()
        self.directory = directory
        self.run_hash = run_hash
        self.damaged: list[Path] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, content = Path(path), io.BytesIO()
        # Not to the file: where a write fails, torch's archive would say that its end is missing. And not by
        # Lightning, which writes it to /tmp first: two disks can be full then.
        checkpoint = {**checkpoint, RUN_KEY: self.run_hash}
        torch.save({**checkpoint, CHECKSUM_KEY: checksum(checkpoint)}, content)
        keep = Path(f"{path}.damaged") if path in self.damaged else self.directory.previous_checkpoint_file
        self.set_apart_damaged(but=path)
        write_atomic(path, content.getbuffer(), partial=Path(f"{path}.partial"), keep=keep)
        if self.directory.checkpoints.sharded():
            self.directory.checkpoints.keep_newest(2)

    def set_apart_damaged(self, *, but: Path | None = None) -> None:
        """Keeps apart what could not be read, once; but: what the caller keeps itself."""
        for path in self.damaged:
            if path != but:
                self.directory.checkpoints.set_apart(path)
        self.damaged = []

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """A file's content, or that of a folder of shards, which becomes that of a file."""
        return read_sharded(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *arguments, **options)


class UnnamedCheckpoint(ModelCheckpoint):
    """Lightning's callback, which has checkpoints written and does not write into them where they lie.

    Its state is paths alone, and the folder's owner may be in their names. It counts for nothing: a run knows its
    checkpoints by their names, wherever its directory has been moved.
    """

    @property
    def state_key(self) -> str:
        # That of older checkpoints, which Lightning would miss.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leaves an older checkpoint's alone."""


def checksum(checkpoint: Mapping[str, Any]) -> str:
    """64 hexadecimal digits of every tensor, number and word of a checkpoint, apart from its own checksum."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"mapping {len(value)}".encode())
            for name, item in value.items():
                add(name)
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"list {len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__} {value!r}\0".encode(errors="backslashreplace"))

    add({name: value for name, value in checkpoint.items() if name != CHECKSUM_KEY})
    return digest.hexdigest()


def read_checkpoint(
    path: Path, callbacks: Sequence[L.Callback], *, tensors: bool = True, needed: Sequence[str] = NEEDED
) -> dict[str, Any]:
    """The content of a checkpoint, all of it looked at.

    Args:
        path: a file, or a folder of shards.
        callbacks: whose states must be in it.
        tensors: False: those of shards are left on the disk, and their shapes alone returned.
        needed: what must be in it; `WEIGHTS` of one that no run is to go on from.

    Raises:
        CheckpointError: for one that is damaged, lacks something, or is none.
        OSError: for one that cannot be read.
    """
    if is_sharded(path):
        with _damage_told():
            check_files(path)
            content = read_sharded(path, tensors=tensors)
            _check_content(content, callbacks, needed)
        return content
    with open_regular(path) as file, _damage_told():
        _check_archive(file)
        content = torch.load(file, weights_only=True, map_location="cpu")
        _check_content(content, callbacks, needed)
    return content


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """Raises CheckpointError for what a damaged file makes of torch's reader, which is anybody's guess."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # Of a disk. A damaged file may ask for a place that no file has, which is an invalid argument.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise CheckpointError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error


def _check_archive(file: BinaryIO) -> None:
    """By the checksums of a zip archive, which torch writes and does not look at."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"the checksum of {damaged} in it is another one")
    file.seek(0)


def _check_content(content: Any, callbacks: Sequence[L.Callback], needed: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise CheckpointError(f"it holds a {type(content).__name__}")
    if CHECKSUM_KEY in content and content[CHECKSUM_KEY] != checksum(content):
        raise CheckpointError("its checksum is not that of its content")
    missing = [name for name in needed if name not in content]
    if not missing and needed == NEEDED:
        missing = _missing_parts(content, callbacks)
    if missing:
        raise CheckpointError(f"it lacks {', '.join(missing)}")
    if not isinstance(content["global_step"], int) or not isinstance(content.get(MODEL_CONFIG_KEY, {}), dict):
        raise CheckpointError("its global_step or model_config is of another kind")
    if not all(isinstance(weight, Tensor) for weight in content["state_dict"].values()):
        raise CheckpointError("its weights are none")
    for callback in callbacks:
        before = callback.state_dict()
        try:
            # Which says whether it can be taken up.
            callback.load_state_dict(content["callbacks"][callback.state_key])
        finally:
            callback.load_state_dict(before)


def _missing_parts(content: dict[str, Any], callbacks: Sequence[L.Callback]) -> list[str]:
    missing = [name for name in ("optimizer_states", "lr_schedulers") if not content[name]]
    missing += [] if "fit_loop" in content["loops"] else ["loops.fit_loop"]
    for callback in callbacks:
        own, stored = callback.state_dict(), content["callbacks"].get(callback.state_key, {})
        missing += [f"callbacks.{callback.state_key}.{name}" for name in own if name not in stored]
    for optimizer in content["optimizer_states"]:
        # A step has made moments of every parameter.
        moments = optimizer["state"]
        trained = [number for group in optimizer["param_groups"] for number in group["params"]]
        missing += [
            f"optimizer_states.state.{number}"
            for number in trained
            if content["global_step"] and not {"step", "exp_avg", "exp_avg_sq"} <= set(moments.get(number, ()))
        ]
    return missing


def find_checkpoint(
    directory: RunDirectory, weights: Mapping[str, Tensor], config: dict[str, Any], callbacks: Sequence[L.Callback]
) -> tuple[Path | None, dict[Path, str]]:
    """The checkpoint that a run goes on from, the newest that is whole; and a line for each newer one that is not.

    Args:
        weights: the state_dict that it is to fill.
        config: the run's plain config.
        callbacks: whose states it is to fill.

    Returns:
        None for the checkpoint where there is none.

    Raises:
        RunDirectoryError: for one of another model, or one that the system does not let anybody read.
    """
    damages: dict[Path, CheckpointError] = {}
    found = None
    for path in directory.checkpoints.newest_first():
        try:
            # Whoever goes on from shards reads them later, each process what it needs.
            content = read_checkpoint(path, callbacks, tensors=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be read ({error.strerror}), expected a checkpoint") from error
        except CheckpointError as error:
            damages[path] = error
            continue
        _check_model(path, content, weights, config)
        found = path
        break
    goes_on = "the run starts anew" if found is None else f"the run goes on from {found.name}"
    return found, {path: f"{path} is no readable checkpoint ({error}): {goes_on}" for path, error in damages.items()}


def _check_model(path: Path, content: dict[str, Any], weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    stated = content.get(RUN_KEY)
    stored = with_key_expansion(content.get(MODEL_CONFIG_KEY, {}), config["model"])
    changes = config_changes({"model": stored}, {"model": config["model"]}) if stored else []
    old, new = ({key: list(value.shape) for key, value in one.items()} for one in (content["state_dict"], weights))
    changes += [
        f"{key}: stored {old.get(key, 'nothing')}, now {new.get(key, 'nothing')}"
        for key in [*new, *sorted(old.keys() - new.keys())]
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise RunDirectoryError(
            f"model: {path} is a checkpoint of another model, expected one of this run's "
            f"{config['model']['name']} ({shortened(changes)}). Delete it to start the run again"
        )
    if stated not in (None, config_hash(config)):
        raise RunDirectoryError(
            f"run_dir: {path} is a checkpoint of another run, whose config_hash is {stated}, expected "
            f"{config_hash(config)}. Delete it to start the run again"
        )


def quiet_lightning() -> None:
    """Keeps Lightning from repeating for each run of a sweep what is meant so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for meant in (
        "(.*dataloader is not resumable|Checkpoint directory)",  # a resume goes on where it was, and its loader counts
        "The dirpath has changed",  # a run goes on wherever its directory was moved to
        "The `srun` command is available",  # a run is one process, however many Slurm could start
        ".*treespec, LeafSpec",  # Lightning's own use of torch
        "Triton is not supported",  # fla's reference code is what the CPU is meant to run
    ):
        warnings.filterwarnings("ignore", message=meant)
