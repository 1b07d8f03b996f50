"""What an evaluation had measured when it was interrupted, a file a task or measure: the same command goes on from it.

A file counts where all that its numbers follow from is the same, and no byte of it has changed; it is ignored, and
written anew, where anything is another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsa.evaluation.models.checkpoints import EvaluatedModel, settled_dtype
from palimpsa.evaluation.schema import EvaluateConfig
from palimpsa.runs.files import write_atomic
from palimpsa.runs.identity import flatten
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import CHECKSUM, Block, FileUnreadableError, ResultError
from palimpsa.text.manifest import json_sha256

FOLDER = "unfinished"
# Whose versions may change a number, beside those of `provenance`.
PACKAGES = ("lm-eval", "datasets", "tokenizers", "sentencepiece")
# That choose how numbers are computed: the operator's path, Triton's interpreter, TF32 of cuBLAS and cuDNN.
VARIABLES = ("PALIMPSA_PATH", "TRITON_INTERPRET", "NVIDIA_TF32_OVERRIDE")
PACKAGE = Path(__file__).resolve().parents[1]


class Unfinished:
    """Measured results of an evaluation that is not complete.

    Args:
        folder: of the evaluation's result.json.
        shared: what the numbers of all tasks and measures follow from, as JSON has it.
        report: called with a line where something is measured anew that was measured before.

    Attributes:
        model: the name of the evaluated model, whose the folder is.
    """

    def __init__(self, folder: Path, shared: dict[str, Any], report: Callable[[str], None] = lambda line: None) -> None:
        self.model = folder.name
        self._folder = folder / FOLDER
        self._shared = shared
        self._report = report

    def find(self, name: str, own: dict[str, Any]) -> Any:
        """What `keep` was given, with numbers of the same bits; None where that has to be measured.

        Args:
            name: of the task or measure.
            own: what its numbers follow from beside what all share.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            found = read_json_object(path, "expected what was measured of a task")
            if found.get(CHECKSUM) != _checksum(found):
                raise ResultError(f"{path}: it does not fit its own {CHECKSUM}")
            Block(path, "", found).block("follows_from")
            if "measured" not in found:
                raise ResultError(f"{path}: measured is missing")
        except FileUnreadableError:
            raise
        except ResultError as error:
            self._report(f"{name} is measured anew: {error}")
            return None
        old, new = flatten(found["follows_from"]), flatten(self._follows_from(own))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            self._report(f"{name} is measured anew: it was measured with another {', '.join(changed)}")
            return None
        return found["measured"]

    def keep(self, name: str, own: dict[str, Any], measured: Any) -> None:
        """Writes what was measured, as JSON has it: whole or not at all.

        Raises:
            OSError: see `write_atomic`.
            ValueError: for a number that is not finite, which `check_measured` refuses first.
        """
        content = {"follows_from": self._follows_from(own), "measured": measured}
        text = json.dumps({**content, CHECKSUM: _checksum(content)}, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self._path(name), text + "\n")

    def remove(self) -> None:
        """Once all of it is in result.json."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _follows_from(self, own: dict[str, Any]) -> dict[str, Any]:
        # As it is read back.
        return json.loads(json.dumps({**self._shared, **own}))


def shared_facts(config: EvaluateConfig, model: EvaluatedModel, made_by: dict[str, Any]) -> dict[str, Any]:
    """What all numbers of an evaluation follow from.

    Args:
        made_by: the `provenance` of this process.
    """
    return {
        "checkpoint": model.digest,
        "max_length": model.max_length,
        "prefix_token": model.codec.prefix_token,
        "dtype": str(settled_dtype(config.dtype, config.device)).removeprefix("torch."),
        # No number depends on it but for rounding, and that may tell two answers apart.
        "batch_size": config.evaluation.batch_size,
        "device": made_by["device"],
        "versions": {**made_by["versions"], **{name: _version(name) for name in PACKAGES}},
        "code": code_digest(),
        "environment": {name: os.environ.get(name, "") for name in VARIABLES},
        "float32_products": _float32_products(),
    }


def _float32_products() -> dict[str, Any]:
    # Here and not above: it takes seconds to import, and what reads files needs none of it.
    import torch

    backends: Any = torch.backends
    # As `set_float32_matmul_precision` and `allow_tf32` set it, too, which cannot always be read back.
    return {
        "cuda": backends.cuda.matmul.fp32_precision,
        "cudnn": backends.cudnn.conv.fp32_precision,
        "cpu": backends.mkldnn.matmul.fp32_precision,
    }


def code_digest() -> str:
    """SHA-256, in hex, of this package's source files, whether or not they are committed."""
    found = hashlib.sha256()
    for path in _sources(PACKAGE):
        found.update(f"{path.relative_to(PACKAGE)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    # By hand: kernels is a link, which rglob does not follow.
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def plain_numbers(value: Any) -> Any:
    """Results as JSON has them: dataclasses as objects, tuples as lists, and null for a standard error that is NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: None if name == "stderr" and _is_nan(one) else plain_numbers(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(one) for one in value]
    return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def nan_where_null(value: float | None) -> float:
    """A standard error as `plain_numbers` wrote it."""
    return math.nan if value is None else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _checksum(content: dict[str, Any]) -> str:
    return json_sha256({name: value for name, value in content.items() if name != CHECKSUM})
