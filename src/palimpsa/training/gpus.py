"""Which GPU a process trains on, where several share a machine: leases that end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from palimpsa.config.errors import ConfigError, RunDirectoryError


@dataclass
class _Lease:
    process: int
    uuid: str
    file: IO[str]  # open, and locked for as long


_lease: _Lease | None = None
_unusable = False


def visible_gpus() -> list[str]:
    """The UUIDs of the GPUs that CUDA shows this process, by its indices; empty where there is none."""
    import torch

    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def check_gpus(gpus: list[int] | None, num_gpus: int | None) -> None:
    """Checks `trainer.gpus` against the number of GPUs that CUDA shows, None where that is not known yet.

    Raises:
        ConfigError: for an empty list, an index that stands there twice, or one that this machine does not have.
    """
    if gpus is None:
        return
    if not gpus:
        raise ConfigError("trainer.gpus: got an empty list, expected indices such as [0, 1], or null for every GPU")
    for position, index in enumerate(gpus):
        if index < 0:
            raise ConfigError(f"trainer.gpus: got {index}, expected indices of 0 and above")
        if index in gpus[:position]:
            raise ConfigError(f"trainer.gpus: got {index} twice, expected every index once")
        if num_gpus is not None and index >= num_gpus:
            shown = f"{num_gpus} GPU{'s' if num_gpus != 1 else ''}"
            raise ConfigError(
                f"trainer.gpus: got {index}, expected indices below {num_gpus}: this machine shows {shown}"
            )


def check_device(cfg: Any, *, elsewhere: bool = False) -> None:
    """Checks that this machine has the GPU that a config asks for.

    Args:
        cfg: configs/train.yaml, composed.
        elsewhere: the run starts on another machine, which it checks itself then.

    Raises:
        ConfigError: naming the key that asks, where there is none, or where the trainer would leave it idle.
    """
    gpus = None if cfg.trainer.gpus is None else [int(index) for index in cfg.trainer.gpus]
    if gpus is not None and cfg.trainer.accelerator != "gpu":
        raise ConfigError(
            f"trainer.gpus: got {gpus}, expected null with trainer={cfg.trainer.name}, which computes on the CPU; "
            "add trainer=gpu"
        )
    if not (cfg.scale.requires_gpu or cfg.trainer.accelerator == "gpu"):
        return
    import torch

    by_trainer = "trainer=gpu" if cfg.trainer.name == "gpu" else "trainer.accelerator=gpu"
    asked_by = f"scale={cfg.scale.name}" if cfg.scale.requires_gpu else by_trainer
    if not elsewhere and not torch.cuda.is_available():
        with_gpus = "" if gpus is None else f" with trainer.gpus={gpus}"
        raise ConfigError(
            f"{asked_by}{with_gpus}: needs an NVIDIA GPU that PyTorch can use (one H200 is what it is sized for), and "
            "this machine has none; scale=laptop with trainer=cpu runs anywhere"
        )
    if cfg.trainer.accelerator != "gpu":
        raise ConfigError(f"trainer: got {cfg.trainer.name}, expected one on the GPU with {asked_by}; add trainer=gpu")
    check_gpus(gpus, None if elsewhere else torch.cuda.device_count())


def lease_gpu(gpus: list[int] | None) -> int:
    """The GPU that this process trains on: of those asked for, the one that the fewest of the user's processes hold.

    Processes that start together, one for each GPU, get a GPU each; twice as many get each GPU twice. Nobody
    coordinates them: a lease is a lock on a file of a (GPU, slot) in the user's temporary directory, where a GPU is
    told by its UUID, so that CUDA_VISIBLE_DEVICES may differ. A process keeps its GPU until it ends, however it does,
    since another would cost it a second CUDA context.

    Args:
        gpus: indices as CUDA shows them to this process; None for all.

    Returns:
        the index.

    Raises:
        ConfigError: for indices that do not exist, where there is no GPU, or where the directory is another user's.
    """
    global _lease
    uuids = visible_gpus()
    check_gpus(gpus, len(uuids))
    if not uuids:
        raise ConfigError("trainer.accelerator: got gpu, and CUDA shows no GPU; trainer=cpu runs anywhere")
    wanted = [uuids[index] for index in (range(len(uuids)) if gpus is None else gpus)]
    # A forked process has its parent's lease in memory, and needs one of its own.
    if _lease is None or _lease.process != os.getpid() or _lease.uuid not in wanted:
        if _lease is not None:
            _lease.file.close()
        _lease = _take(wanted)
    return uuids.index(_lease.uuid)


def _take(uuids: list[str]) -> _Lease:
    directory = _own_directory()
    with machine_lock("choosing"):
        slots = {uuid: sorted(directory.glob(f"{uuid}.*")) for uuid in uuids}
        free = {uuid: [path for path in slots[uuid] if _is_free(path)] for uuid in uuids}
        # min() takes the first of equals: in the order asked for.
        uuid = min(uuids, key=lambda uuid: len(slots[uuid]) - len(free[uuid]))
        new = (directory / f"{uuid}.{number}" for number in itertools.count())
        path = next(iter(free[uuid]), None) or next(path for path in new if path not in slots[uuid])
        file = path.open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return _Lease(os.getpid(), uuid, file)


def _is_free(path: Path) -> bool:
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def record_gpu_failure(error: Exception) -> None:
    """After a run that failed on the GPU: unless the numbers, the config or the disk are to blame, the GPU is unusable.

    An illegal access fails every later run of the process that made it, and a capture that failed never gives its
    memory back. The lease ends: it is another process that will train.
    """
    global _lease, _unusable
    if isinstance(error, (FloatingPointError, ConfigError, RunDirectoryError, OSError)):
        return
    _unusable = True
    if _lease is not None:
        _lease.file.close()
        _lease = None


def gpu_is_unusable() -> bool:
    """Whether a run failed in this process so that later ones need another: see `record_gpu_failure`."""
    return _unusable


@contextlib.contextmanager
def machine_lock(name: str, tell_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock of this user and machine: one process at a time; a killed one holds it no longer.

    Taken twice by one process it waits for ever.

    Args:
        name: of what is done one process after the other.
        tell_waiting: called first where another process holds it.

    Raises:
        ConfigError: where the directory of the locks cannot be made, or is another user's.
    """
    with (_own_directory() / name).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell_waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing alone would leave it with the children that were forked meanwhile.
            fcntl.flock(file, fcntl.LOCK_UN)


def _own_directory() -> Path:
    try:
        directory = Path(tempfile.gettempdir()) / f"palimpsa-gpus-{os.getuid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"TMPDIR: {error}, expected a directory to write to") from error
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise ConfigError(f"TMPDIR: {directory} is another user's, expected a directory of this user's")
    return directory
