"""Files as a shared disk has them: rights by the umask, and nothing left behind by writers that were killed."""

import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import ABANDONED_S, hold_lock, whole_folder, write_atomic


@pytest.fixture
def umask():
    before = os.umask(0)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "expected"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_files_and_locks_have_the_rights_that_the_umask_leaves(tmp_path, umask, mask, expected):
    """Otherwise a group cannot go on with each other's runs, or others read what was to be private."""
    umask(mask)
    assert mode(write_atomic(tmp_path / "a.csv", "1")) == expected
    assert mode(write_atomic(tmp_path / "a.csv", "2")) == expected
    with hold_lock(tmp_path / ".lock"):
        assert mode(tmp_path / ".lock") == expected
    with RunDirectory(tmp_path / "run").locked():
        assert mode(tmp_path / "run/.lock") == expected


def test_a_disk_on_which_rights_cannot_be_changed_takes_files(tmp_path, monkeypatch):
    """Mounts of a network do not: every run would end there."""

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    for name in ("chmod", "fchmod", "lchmod", "chown", "fchown"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    assert write_atomic(tmp_path / "a.csv", "1").read_text() == "1"
    with RunDirectory(tmp_path / "run").locked():
        pass


KILLED = "import os, signal, palimpsa.runs.files as f; f.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"


def test_what_a_killed_writer_leaves_the_next_one_removes(tmp_path):
    """Full disks are made of them: a checkpoint's is as large as the model."""
    path, other = tmp_path / "runs.csv", tmp_path / "curves.csv"
    for target in (path, other):
        code = f"{KILLED}; f.write_atomic(f.Path({str(target)!r}), 'half')"
        assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    left = sorted(file.name for file in tmp_path.iterdir())
    assert len(left) == 2
    assert re.match(r"\.curves\.csv\..*\.tmp$", left[0])
    write_atomic(path, "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [left[0], "runs.csv"]
    with RunDirectory(tmp_path).locked():
        assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "runs.csv"]


def test_nothing_is_written_into_what_lies_at_the_place_of_a_temporary_file(tmp_path):
    """A pipe would hang the run, and a link would have its checkpoint overwrite somebody's file."""
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(theirs)
    for name in ("pipe", "link"):
        assert write_atomic(tmp_path / "last.ckpt", name, partial=tmp_path / name).read_text() == name
    assert theirs.read_text() == "mine"


def test_what_others_are_writing_stays(tmp_path):
    mine = f".a.csv.{re.sub(r'[^a-zA-Z0-9_]', '_', socket.gethostname())}.{os.getppid()}.{'0' * 32}.tmp"
    theirs, abandoned = (f".a.csv.elsewhere.1.{digit * 32}.tmp" for digit in "12")
    for name in (mine, theirs, abandoned, ".a.csv.tmp", "notes.tmp"):
        (tmp_path / name).write_text("half")
    long_ago = time.time() - ABANDONED_S - 60
    os.utime(tmp_path / abandoned, (long_ago, long_ago))
    write_atomic(tmp_path / "a.csv", "1")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["a.csv", mine, theirs, ".a.csv.tmp", "notes.tmp"]
    )


def test_a_folder_appears_once_it_is_whole_and_what_fails_leaves_the_old_one(tmp_path):
    place = tmp_path / "made"
    with whole_folder(place) as partial:
        (partial / "a").write_text("1")
        assert not place.exists()
    with pytest.raises(OSError, match=r"not empty|exists"), whole_folder(place) as partial:
        (partial / "a").write_text("2")
    with pytest.raises(FileNotFoundError), whole_folder(place, replace=True) as partial:
        (partial / "absent/a").write_text("3")
    assert (place / "a").read_text() == "1"
    with whole_folder(place, replace=True) as partial:
        (partial / "b").write_text("4")
    assert [path.name for path in place.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_fails_leaves_none_of_the_folders_that_it_was_to_be_in(tmp_path):
    def fail(beside):
        with whole_folder(tmp_path / "a/b/made") as partial:
            (partial.parent if beside else partial).joinpath("written").write_text("1")
            raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        fail(beside=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="full"):
        fail(beside=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "written"]


def test_a_killed_writer_of_a_folder_leaves_nothing_for_long(tmp_path):
    place = tmp_path / "made"
    code = (
        "import os; from pathlib import Path; from palimpsa.runs.files import whole_folder\n"
        f"with whole_folder(Path({str(place)!r})) as partial:\n"
        "    (partial / 'a').write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".made.")
    with whole_folder(place) as partial:
        (partial / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
