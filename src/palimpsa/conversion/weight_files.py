"""The tensors of a model's folder, of safetensors or of pickles, of which no code is run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.runs.result import read_json_object

# As transformers looks for them: of several the first one counts.
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
# The reasons within errors of torch.load's, whose other words advise to run the code.
REFUSED_BY_TORCH = re.compile(r"(Trying to load unsupported|Unsupported global:) GLOBAL \S+|Unsupported operand \d+")
# What Megatron leaves, whose checkpoints are pickles of objects.
MEGATRON = ("latest_checkpointed_iteration.txt", "mp_rank_00", "release")


def check_is_folder_of_a_model(folder: Path) -> None:
    """Raises ConfigError unless a folder has a config.json, and says so of a checkpoint of Megatron's."""
    megatron = [name for name in MEGATRON if (folder / name).exists()]
    if megatron:
        raise ConfigError(
            f"{folder}: got {megatron[0]}, a checkpoint of Megatron's, whose files are pickles with code; expected a "
            "folder of transformers or of state-spaces"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: got no config.json in it, expected the folder of a model")


def read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a folder by their names, on the CPU, and a line that says how they were read.

    Raises:
        ConfigError: in one line: there are none, a file is damaged, is no file of tensors, or holds code.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ConfigError(f"{folder}: got no weights in it, expected one of {', '.join(WEIGHT_FILES)}")
    places = _places(found) if found.suffix == ".json" else {}
    paths = [found.parent / name for name in sorted(set(places.values()))] or [found]
    weights: dict[str, Tensor] = {}
    for path in paths:
        part = _read_pickle(path) if path.suffix == ".bin" else _read_safetensors(path)
        twice = sorted(part.keys() & weights.keys())
        if twice:
            raise ConfigError(f"{path}: got {twice[0]}, which another file of {found} has too")
        if places:
            _check_agrees(path, part, found, places)
        weights |= part
    how = "torch.load(weights_only=True), which runs no code of theirs" if paths[0].suffix == ".bin" else "safetensors"
    return weights, f"{', '.join(path.name for path in paths)}: read by {how}"


def check_one_floating_dtype(weights: dict[str, Tensor], path: Path) -> None:
    """Raises ConfigError for tensors that are no floating-point numbers of 16 bits or more, or of several dtypes."""
    first: tuple[str, torch.dtype] | None = None
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise ConfigError(f"{path}: {name}: got {weight.dtype}, expected floating-point numbers")
        if weight.element_size() < 2:
            # Of 8 bits they are of quantised models, whose scales are elsewhere.
            raise ConfigError(f"{path}: {name}: got {weight.dtype}, expected floating-point numbers of 16 bits or more")
        first = first or (name, weight.dtype)
        if weight.dtype != first[1]:
            raise ConfigError(
                f"{path}: got {weight.dtype} in {name} and {first[1]} in {first[0]}, expected one dtype in all"
            )


def _places(index: Path) -> dict[str, str]:
    """The file of each tensor that an index names, in its folder."""
    named = read_json_object(index, "expected an index of weights").get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ConfigError(f"{index}: weight_map: got {type(named).__name__}, expected files by the names of tensors")
    files, kind = sorted(set(named.values())), Path(index.name.removesuffix(".index.json")).suffix
    for name in files:
        if Path(name).name != name or Path(name).suffix != kind:
            raise ConfigError(f"{index}: weight_map: got {name!r}, expected a {kind} file beside it")
        if not (index.parent / name).is_file():
            raise ConfigError(f"{index}: weight_map: got {name!r}, which is not there")
    return named


def _check_agrees(path: Path, part: dict[str, Tensor], index: Path, places: dict[str, str]) -> None:
    """Raises ConfigError for a file that has other tensors than its index says: one of the two is of another model."""
    said = {name for name, place in places.items() if place == path.name}
    for names, what in ((said - part.keys(), "has no"), (part.keys() - said, "has")):
        if names:
            raise ConfigError(f"{path}: {what} {min(names)}, expected the tensors that {index.name} says")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}), expected a file of safetensors") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # Of a pickle's protocol, before the error.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a file that is none makes of the library.
        found = REFUSED_BY_TORCH.search(str(error))
        first = str(error).partition("\n")[0]
        reason = found[0] if found else type(error).__name__ if "weights_only" in first or not first else first[:200]
        raise ConfigError(
            f"{path}: refused by torch.load(weights_only=True), which takes tensors and runs no code ({reason})"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in content.items()
    ):
        raise ConfigError(f"{path}: got {type(content).__name__} of other things, expected tensors by their names")
    for name, weight in content.items():
        if weight.layout != torch.strided or weight.is_meta:
            kind = "no values" if weight.is_meta else str(weight.layout)
            raise ConfigError(f"{path}: {name}: got a tensor of {kind}, expected dense ones with values")
    return content
