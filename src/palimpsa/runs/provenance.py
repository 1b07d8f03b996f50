"""Where a number came from: revision, versions, device, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REVISION_VARIABLE = "PALIMPSA_REVISION"
# Whose versions may change a number, beside Python's.
PACKAGES = (
    "torch",
    "triton",
    "lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "flash-linear-attention",
    "transformers",
    "wandb",
)


def provenance(accelerator: str) -> dict[str, Any]:
    """Git revision, versions, device and command of this process; None for what cannot be told.

    On a copy of the tree, which has no git metadata or that of an older revision, the environment variable
    PALIMPSA_REVISION tells the revision. It comes before what git says, and leaves open whether the copy was edited.

    Args:
        accelerator: "cpu" or "gpu", what the run uses.
    """
    root = Path(__file__).parent
    from_environment = os.environ.get(REVISION_VARIABLE) or None
    revision = from_environment or _git(root, "rev-parse", "HEAD")
    # What a run writes is not what it was computed with.
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results")
    return {
        "git_revision": revision,
        "git_dirty": None if from_environment or revision is None else bool(changes),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": _device(accelerator),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def versions_text(found: dict[str, Any], names: Iterable[str]) -> str:
    """The versions of some packages, of what `provenance` found, as a table's cell.

    >>> versions_text({"versions": {"python": "3.11.9", "torch": "2.11.0"}}, ["python", "torch"])
    'python 3.11.9, torch 2.11.0'
    """
    return ", ".join(f"{name} {found['versions'][name]}" for name in names)


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return None


def _device(accelerator: str) -> str:
    import torch

    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    return f"{_cpu_name()}, threads a run: {torch.get_num_threads()}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
