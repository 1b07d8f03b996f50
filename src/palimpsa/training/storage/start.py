"""What a run starts from that does not start from its seed: the weights of another run, or of a folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import StartConfig, TrainConfig
from palimpsa.runs.checkpoints import is_sharded
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.result import read_json_object
from palimpsa.training.storage.trained import read_source, weights_digest

# Of the tensors that do not fit, how many an error names.
MOST_NAMED = 3


def with_start_digest(config: TrainConfig) -> TrainConfig:
    """The config with the digest of the weights that it starts from; one that has it is held to it.

    Where the weights are gone and the run has begun, it is the digest that the run's directory has on record: the run
    goes on from its own checkpoint.

    Raises:
        ConfigError, RunDirectoryError: in one line, where there are no weights, or others than those of the digest.
    """
    start = config.start
    if start.weights is None:
        if start.digest is not None:
            raise ConfigError(f"start.digest: got {start.digest} with start.weights=null, expected null")
        return config
    path = Path(start.weights).expanduser()
    on_record = _digest_on_record(config.run_dir) if weights_are_gone(path) else None
    found = on_record or _digest_of(path, _newest_change(path))
    if start.digest not in (None, found):
        raise ConfigError(
            f"start.digest: got {start.digest}, expected {found}, that of {path}; null reads it from there"
        )
    return dataclasses.replace(config, start=dataclasses.replace(start, digest=found))


def weights_are_gone(path: Path) -> bool:
    """Whether there is nothing at a path, or what once had weights: a run that has ended, a folder that was copied."""
    if not path.is_dir():
        return not path.exists()
    directory = RunDirectory(path)
    if is_sharded(path) or directory.checkpoints.newest_first():
        return False
    return directory.result_file.exists() or (directory.config_file.exists() and not any(path.glob("*.safetensors")))


def _digest_on_record(run_dir: str) -> str | None:
    file = RunDirectory(run_dir).config_file
    if not file.exists():
        return None
    return read_json_object(file, "expected a run's config").get("start", {}).get("digest")


def _newest_change(path: Path) -> int:
    """When what lies at a path was last written, in nanoseconds: so that a sweep reads what its runs share once."""
    files = [path, *path.glob("*"), *path.glob("checkpoints/*"), *path.glob("checkpoints/*/*")]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, newest_change: int) -> str:
    try:
        return weights_digest(read_source(path).weights)
    except (ConfigError, RunDirectoryError) as error:
        raise type(error)(f"start.weights: {error}") from error


def check_start(model: nn.Module, start: StartConfig) -> None:
    """Whether the weights that a run starts from fit its model, which may be on the device "meta".

    Raises:
        ConfigError, RunDirectoryError: see `fill_from_start`. Weights that are gone are for the run to miss: one that
            has begun needs them no more.
    """
    if start.weights is not None and not weights_are_gone(Path(start.weights).expanduser()):
        _fitting_weights(model, start.weights)


def fill_from_start(model: nn.Module, start: StartConfig) -> None:
    """Gives a model the weights that its run starts from, by name and shape, in place and in the model's dtypes.

    Raises:
        ConfigError, RunDirectoryError: for weights that are not there, are other ones than start.digest says, or do not
            fit: tensors that are missing, unexpected or of another shape are named.
    """
    assert start.weights is not None
    weights = _fitting_weights(model, start.weights)
    if weights_digest(weights) != start.digest:
        raise ConfigError(f"start.weights: {start.weights} has changed since its digest was read: {start.digest}")
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(weights[name])


def _fitting_weights(model: nn.Module, path: str) -> dict[str, Tensor]:
    try:
        weights = read_source(Path(path).expanduser()).weights
    except (ConfigError, RunDirectoryError) as error:
        raise type(error)(f"start.weights: {error}") from error
    problems = _problems(model.state_dict(), weights)
    if problems:
        raise ConfigError(f"start.weights: {path} does not fit the run's model: {'; '.join(problems)}")
    return weights


def _problems(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, a line a kind, naming the first tensors of each."""
    missing = [name for name in own if name not in given]
    unexpected = sorted(given.keys() - own.keys())
    other = [
        f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    return [f"{_named(names)} {kind}" for kind, names in found.items() if names]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"
