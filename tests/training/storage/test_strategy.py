"""Folders of shards on the disk: a kill at any point leaves one that is whole, and a full disk is told of."""

import contextlib
import os
import resource
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from palimpsa.runs.directory import RunDirectory
from palimpsa.training.checkpoint import AtomicCheckpointIO
from palimpsa.training.storage.sharded import CheckpointError, check_files, read_sharded
from palimpsa.training.storage.strategy import ShardedStrategy

# What changes a disk, one call of the system's each.
CALLS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """What a SIGKILL is to the code that it hits: nothing is done after it."""


@pytest.fixture
def process_group(one_rank):
    torch.distributed.init_process_group("gloo")


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path / "run")


def save(directory: RunDirectory, step: int, *, size: int = 5) -> None:
    """As Lightning has the strategy save a run's checkpoint."""
    strategy = ShardedStrategy(1)
    strategy.checkpoint_io = AtomicCheckpointIO(directory, "hash")
    group = {"lr": 0.1, "params": ["w", "b"]}
    moments = {name: {"exp_avg": torch.full((3,), float(step))} for name in "wb"}
    content = {
        "state_dict": {"w": torch.full((size,), float(step))},
        "optimizer_states": [{"state": moments, "param_groups": [group]}],
        "global_step": step,
    }
    strategy.save_checkpoint(content, directory.checkpoint_file)


def whole(directory: RunDirectory) -> list[int]:
    """The steps of all checkpoints that can be gone on from, newest first; their contents are looked at."""
    steps = []
    for folder in directory.checkpoints.newest_first():
        try:
            check_files(folder)
        except CheckpointError:
            continue
        content = read_sharded(folder)
        step = content["global_step"]
        assert content["state_dict"]["w"].tolist() == [step] * 5
        (optimizer,) = content["optimizer_states"]
        assert optimizer["param_groups"] == [{"lr": 0.1, "params": [0, 1]}]
        assert optimizer["state"][1]["exp_avg"].tolist() == [step] * 3
        steps.append(step)
    return steps


def names(directory: RunDirectory) -> list[str]:
    return sorted(path.name for path in directory.checkpoints.path.iterdir())


def test_the_last_two_are_kept_and_named(process_group, directory):
    for step in (4, 8, 12):
        save(directory, step)
        assert directory.checkpoints.latest.read_text() == f"step_{step}\n"
        assert directory.checkpoint_step() == step
    assert names(directory) == ["latest", "step_12", "step_8"]
    # Again at the same step, at a run's end say: the one that is there stays until the new one is.
    save(directory, 12)
    assert names(directory) == ["latest", "step_12", "step_12_2"]
    assert directory.checkpoints.newest_first()[0].name == "step_12_2"
    assert whole(directory) == [12, 12]


class KillAfter:
    """Lets so many calls of the system's through, and none after them."""

    def __init__(self, number: int, patch: pytest.MonkeyPatch) -> None:
        self.number = number
        self.has_killed = False
        for name in CALLS:
            patch.setattr(os, name, partial(self._call, getattr(os, name)))

    def _call(self, call, *arguments, **options):
        if self.number == 0:
            self.has_killed = True
            raise Killed
        self.number -= 1
        return call(*arguments, **options)


def test_a_kill_between_any_two_calls_leaves_a_checkpoint_that_can_be_read(process_group, tmp_path):
    outcomes, has_killed, num_calls = set(), True, 0
    while has_killed:
        directory = RunDirectory(tmp_path / f"after{num_calls}")
        for step in (4, 8, 12):
            save(directory, step)
        with pytest.MonkeyPatch.context() as patch:
            kill = KillAfter(num_calls, patch)
            # Its writer of shards tells it as a failure.
            with contextlib.suppress(Killed, OSError):
                save(directory, 16)
            has_killed = kill.has_killed
        outcomes.add((whole(directory)[0], directory.checkpoint_step()))
        # The same run goes on, and nothing is left over.
        with directory.locked():
            save(directory, 16)
        assert len(whole(directory)) == 2
        newest = directory.checkpoints.newest_first()[0]
        assert directory.checkpoints.latest.read_text() == f"{newest.name}\n"
        assert [name for name in names(directory) if not name.startswith("step_")] == ["latest"]
        num_calls += 1
    # Every one of them: files and folders made, moved, named, and the older one removed.
    assert num_calls > 15
    assert outcomes == {(12, 12), (16, 16)}


def test_a_full_disk_is_an_error_and_leaves_the_ones_before(process_group, directory):
    for step in (4, 8):
        save(directory, step)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"step\.partial"):
            save(directory, 12, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert whole(directory) == [8, 4]


def damage(folder: Path, name: str, how: str) -> str:
    """Damages a file; returns what is told of it."""
    path = folder / name
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return f"{name} of it is missing"
    if how == "cut short":
        path.write_bytes(content[:-1])
        return f"{name} of it has {len(content) - 1} bytes, expected {len(content)}"
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"the checksum of {name} in it is another one"


@pytest.mark.parametrize("how", ["missing", "cut short", "another bit"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.pt"])
def test_a_damaged_file_is_named(process_group, directory, name, how):
    save(directory, 4)
    (folder,) = directory.checkpoints.newest_first()
    check_files(folder)
    told = damage(folder, name, how)
    with pytest.raises(CheckpointError) as error:
        check_files(folder)
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "manifest.json of it is missing"),
        ("{", "manifest.json of it is no manifest"),
        ("[]", "manifest.json of it is no manifest"),
        ('{"files": {"meta.pt": 3}}', "manifest.json of it is no manifest"),
        ('{"files": {}}', "manifest.json of it does not name .metadata"),
    ],
)
def test_a_manifest_that_is_none_is_told(process_group, directory, content, told):
    save(directory, 4)
    (folder,) = directory.checkpoints.newest_first()
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=told):
        check_files(folder)


def test_a_folder_that_latest_names_and_that_is_gone_is_told(process_group, directory):
    for step in (4, 8):
        save(directory, step)
    newest, before = directory.checkpoints.newest_first()
    newest.rename(newest.with_name("elsewhere"))
    assert directory.checkpoints.newest_first() == [newest, before]
    with pytest.raises(CheckpointError, match="the folder is missing, and step_8 is what `latest` names"):
        check_files(newest)
    # Once set apart it is no longer asked for.
    directory.checkpoints.set_apart(newest)
    assert directory.checkpoints.newest_first() == [before]


def test_what_is_set_apart_replaces_what_was(process_group, directory):
    for _ in range(2):
        save(directory, 4)
        (folder,) = directory.checkpoints.newest_first()
        directory.checkpoints.set_apart(folder)
        assert names(directory) == ["step_4.damaged"]
    assert not directory.has_checkpoint()


def test_of_a_file_and_folders_the_newest_step_comes_first(process_group, directory):
    files = AtomicCheckpointIO(directory, "hash")
    files.save_checkpoint({"global_step": 6}, directory.checkpoint_file)
    save(directory, 4)
    found = directory.checkpoints.newest_first
    assert [path.name for path in found()] == ["last.ckpt", "step_4"]
    assert directory.checkpoint_step() == 6
    save(directory, 8)
    assert [path.name for path in found()] == ["step_8", "last.ckpt"]
    save(directory, 12)
    assert [path.name for path in found()] == ["step_12", "step_8"]
    files.save_checkpoint({"global_step": 16}, directory.checkpoint_file)
    assert [path.name for path in found()] == ["last.ckpt", "step_12"]
    # What does not say its step is looked at first, and is not removed unseen.
    directory.checkpoint_file.write_bytes(b"damaged")
    save(directory, 20)
    save(directory, 24)
    assert [path.name for path in found()] == ["last.ckpt", "step_24", "step_20"]
    files.damaged = [directory.checkpoint_file]
    files.save_checkpoint({"global_step": 28}, directory.checkpoint_file)
    assert names(directory) == ["last.ckpt", "last.ckpt.damaged", "latest", "step_24"]
