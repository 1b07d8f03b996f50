"""Where a number came from: of this tree's own revision, or of none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsa.runs import provenance as module
from palimpsa.runs.provenance import provenance

PACKAGE = Path(module.__file__).resolve().parents[1]
# What a fresh process records, without torch, which only tells the device.
PROGRAM = """
import sys
from palimpsa.runs import provenance as module
module._device = lambda _: ""
found = [module.provenance("cpu") for _ in range(2)]
assert found[0] == found[1]
print(found[0]["git_revision"], found[0]["git_dirty"])
"""
IDENTITY = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    environment = {**os.environ, **IDENTITY}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all", "--allow-empty")
    return git(folder, "rev-parse", "HEAD")


def unpack(folder: Path, below: str = "src") -> Path:
    """A copy of what records provenance, as in this tree, or as installed: `below` is where the package is."""
    for room in ("config", "runs"):
        place = folder / below / "palimpsa" / room
        shutil.copytree(PACKAGE / room, place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE / "__init__.py", folder / below / "palimpsa")
    (folder / ".gitignore").write_text("__pycache__\n")
    return folder


def record(folder: Path, below: str = "src", **environment: str) -> tuple[str, str]:
    """ "REVISION DIRTY" as a process of the copy records it, and its stderr."""
    full = {**os.environ, "PYTHONPATH": str(folder / below), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=full, capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout.strip(), done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, str]:
    """A copy that is a repository of its own, and its revision."""
    folder = unpack(tmp_path / "tree")
    return folder, commit(folder)


def test_the_revision_of_this_tree_is_recorded(tree):
    folder, revision = tree
    assert record(folder) == (f"{revision} False", "")
    (folder / "results").mkdir()
    (folder / "results" / "new").touch()
    (folder / "src/palimpsa/runs/files.py").write_text("# changed\n")
    assert record(folder) == (f"{revision} True", "")


def test_a_worktree_and_a_submodule_are_trees_of_their_own(tree, tmp_path):
    folder, revision = tree
    git(folder, "worktree", "add", "-q", str(tmp_path / "worktree"), "HEAD")
    assert record(tmp_path / "worktree") == (f"{revision} False", "")
    (tmp_path / "other").mkdir()
    commit(tmp_path / "other")
    git(tmp_path / "other", "submodule", "add", "-q", str(folder), "below/tree")
    assert record(tmp_path / "other/below/tree") == (f"{revision} False", "")


@pytest.mark.parametrize("is_tracked", [True, False])
@pytest.mark.parametrize(
    ("place", "below"), [("vendor/tree", "src"), (".", ".venv/lib/python3.11/site-packages"), ("venv", "lib/a/b")]
)
def test_somebody_elses_repository_around_the_tree_is_not_recorded(tmp_path, place, below, is_tracked):
    """Runs of an unpacked archive would have borne the commit of the folder that it lay in."""
    (tmp_path / "other").mkdir()
    if not is_tracked:
        commit(tmp_path / "other")
    folder = unpack(tmp_path / "other" / place, below)
    if is_tracked:
        commit(tmp_path / "other")
    assert record(folder, below) == ("None None", "")


def test_a_repository_that_does_not_track_the_tree_is_not_recorded(tmp_path):
    (tmp_path / "other").mkdir()
    commit(tmp_path / "other")
    assert record(unpack(tmp_path / "other")) == ("None None", "")


def test_git_variables_of_another_repository_are_not_followed(tree, tmp_path):
    """Git sets them for its hooks."""
    folder, revision = tree
    (tmp_path / "other").mkdir()
    commit(tmp_path / "other")
    other = {"GIT_DIR": str(tmp_path / "other/.git"), "GIT_WORK_TREE": str(folder)}
    assert record(folder, **other) == (f"{revision} False", "")
    other |= {"GIT_INDEX_FILE": str(tmp_path / "other/.git/index"), "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    assert record(folder, **other) == (f"{revision} False", "")
    edited = next(folder.rglob("*.py"))
    edited.write_text(f"{edited.read_text()}# edited\n")
    assert record(folder, **other, GIT_LITERAL_PATHSPECS="1") == (f"{revision} True", "")
    shutil.rmtree(folder / ".git")
    assert record(folder, **other) == ("None None", "")


@pytest.mark.parametrize("damage", ["owner", "no commit", "gitdir", "not there"])
def test_it_is_said_once_why_git_tells_no_revision(tree, tmp_path, damage):
    folder, _ = tree
    environment = {}
    if damage == "owner":
        environment = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    elif damage == "not there":
        environment = {"PATH": str(tmp_path)}
    else:
        shutil.rmtree(folder / ".git")
        if damage == "gitdir":
            (folder / ".git").write_text("gitdir: /somewhere/else/.git/worktrees/tree\n")
        else:
            git(folder, "init", "-q")
    found, err = record(folder, **environment)
    assert found == "None None"
    (line,) = err.splitlines()
    assert line.startswith("no git revision is recorded: git ")
    assert "PALIMPSA_REVISION" in line
    assert ("dubious ownership" in line) == (damage == "owner")


def test_a_status_that_cannot_be_told_is_not_clean(tree):
    folder, revision = tree
    (folder / ".git/index").write_bytes(b"DIRC nonsense")
    found, err = record(folder)
    assert found in (f"{revision} None", "None None")
    assert len(err.splitlines()) == 1


def test_a_revision_told_by_the_environment_comes_first(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for told in ("abc", " abc\n", "v1.0-3-gabc", "x" * 100):
        monkeypatch.setenv("PALIMPSA_REVISION", told)
        for git_says in ((None, None), ("older", False)):
            monkeypatch.setattr(module, "_revision_from_git", lambda found=git_says: found)
            found = provenance("cpu")
            assert (found["git_revision"], found["git_dirty"]) == (told.strip(), None)
    for told in ("", "  "):
        monkeypatch.setenv("PALIMPSA_REVISION", told)
        assert provenance("cpu")["git_revision"] == "older"


@pytest.mark.parametrize("told", ["two words", "x" * 101, "x" * 300, "a\tb", "a\x1b[2Jb"])
def test_what_is_no_revision_is_told_and_left_out(monkeypatch, capsys, told):
    monkeypatch.setenv("PALIMPSA_REVISION", told)
    monkeypatch.setattr(module, "_revision_from_git", lambda: ("older", False))
    module._tell.cache_clear()
    for _ in range(2):
        found = provenance("cpu")
        assert (found["git_revision"], found["git_dirty"]) == ("older", False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("PALIMPSA_REVISION: got ")
    assert len(line) < 160
