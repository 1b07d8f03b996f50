"""Where a number came from: revision, versions, device, command."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsa.config.private import hide_private

REVISION_VARIABLE = "PALIMPSA_REVISION"
MAX_REVISION_LENGTH = 100
# Of git's variables: settings, whose directories are safe among them, and where git itself is.
GIT_KEPT = ("GIT_CONFIG", "GIT_EXEC_PATH", "GIT_TEST_")
# This tree, whose revision is asked for: a folder of Python's packages where it is installed.
TOP = Path(__file__).resolve().parents[3]
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

    Of git repositories only the one counts whose top level is this tree, and that tracks it; where git does not tell
    its revision, stderr says why, once a process. On a copy of the tree, which has no git metadata or that of an older
    revision, the environment variable PALIMPSA_REVISION tells the revision. It comes before what git says, and leaves
    open whether the copy was edited. One that is no revision, a word of at most 100 characters, is told and left out.

    Args:
        accelerator: "cpu" or "gpu", what the run uses.
    """
    from_environment = _revision_from_environment()
    revision, dirty = (from_environment, None) if from_environment else _revision_from_git()
    return {
        "git_revision": revision,
        "git_dirty": dirty,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": _device(accelerator),
        "command": hide_private(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }


def versions_text(found: dict[str, Any], names: Iterable[str]) -> str:
    """The versions of some packages, of what `provenance` found, as a table's cell.

    >>> versions_text({"versions": {"python": "3.11.9", "torch": "2.11.0"}}, ["python", "torch"])
    'python 3.11.9, torch 2.11.0'
    """
    return ", ".join(f"{name} {found['versions'][name]}" for name in names)


def _revision_from_environment() -> str | None:
    told = os.environ.get(REVISION_VARIABLE, "").strip()
    if not told:
        return None
    if len(told) > MAX_REVISION_LENGTH or not told.isprintable() or " " in told:
        found = told if len(told) <= MAX_REVISION_LENGTH else f"{told[:20]}... ({len(told)} characters)"
        _tell(
            f"{REVISION_VARIABLE}: got {found!r}, expected a word of at most {MAX_REVISION_LENGTH} characters; left out"
        )
        return None
    return told


def _revision_from_git() -> tuple[str | None, bool | None]:
    """The commit that is checked out in this tree, and whether tracked files differ from it; None for what is unknown.

    What a run writes is not what it was computed with: changes below results do not count.
    """
    # The link or folder of a repository, a worktree or a submodule; without it this tree is nobody's top level.
    if not os.path.lexists(TOP / ".git"):
        return None, None
    try:
        found = _git("rev-parse", "--show-toplevel", "HEAD")
        top, _, revision = found.rstrip("\n").rpartition("\n")
        if not os.path.samefile(top, TOP) or not _git("ls-files", "--", str(Path(__file__).resolve())):
            return None, None
    except (OSError, subprocess.SubprocessError) as error:
        _tell(f"no git revision is recorded: {_reason(error)}; {REVISION_VARIABLE}=REVISION tells it")
        return None, None
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results")
    except (OSError, subprocess.SubprocessError) as error:
        _tell(f"whether files differ from the git revision is not recorded: {_reason(error)}")
        return revision, None
    return revision, bool(changes)


def _git(*arguments: str) -> str:
    """What git prints in this tree. Raises OSError or SubprocessError where it does not answer."""
    # Of git's variables many lead it to another repository, or have it read paths otherwise.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(GIT_KEPT)
    }
    # A look at the status takes no lock that a person's git would find.
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    return subprocess.run(
        ["git", *arguments],
        cwd=TOP,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=10,
        check=True,
    ).stdout


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Why git did not answer, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"git says: {' '.join(error.stderr.split()) or f'exit code {error.returncode}'}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"git did not answer within {error.timeout:.0f} s"
    return f"git could not be asked ({error})"


@functools.cache
def _tell(line: str) -> None:
    """Prints a line to stderr, each once a process."""
    print(line, file=sys.stderr)


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
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
