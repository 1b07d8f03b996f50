"""Checkpoints that are damaged, or lack something: a run goes on from the one before, or starts anew, and says so.

Otherwise a user loses a result without a word: a flipped bit ends in other numbers that say they are finished.
"""

import random
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.read import read_history
from palimpsa.training.checkpoint import CHECKSUM_KEY, AtomicCheckpointIO, CheckpointError, read_checkpoint
from palimpsa.training.run import run

OVERRIDES = ("model=mamba2", "trainer.checkpoint_every=4")


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory, tiny_overrides) -> tuple[Path, dict]:
    """The directory of a run that was interrupted at its third checkpoint, and the stages of the run that was not."""
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed

    def config(name):
        return typed(compose_config([*tiny_overrides, *OVERRIDES, f"results_dir={tmp_path_factory.mktemp(name)}"]))

    saved = []
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_interrupt(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    cfg = config("interrupted")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(cfg)
    undisturbed = config("undisturbed")
    return Path(cfg.run_dir), {"stages": run(undisturbed)["stages"], "history": curves(Path(undisturbed.run_dir))}


def curves(folder: Path):
    return read_history(folder / "history.csv").to_csv()


@pytest.fixture
def resumed(interrupted_run, tiny_config):
    """A copy of the interrupted run's directory, its config, and what both must come to."""
    folder, expected = interrupted_run
    cfg = tiny_config(*OVERRIDES)
    shutil.copytree(folder, cfg.run_dir)
    directory = RunDirectory(cfg.run_dir)
    assert directory.checkpoint_step() == 12
    assert torch.load(directory.previous_checkpoint_file, weights_only=True)["global_step"] == 8

    def check(cfg):
        result = run(cfg)
        assert (result["status"], result["stages"]) == ("finished", expected["stages"])
        assert curves(directory.path) == expected["history"]
        assert not directory.previous_checkpoint_file.exists()
        return result["provenance"].get("notes", [])

    return directory, cfg, check


def rewrite(path: Path, change) -> None:
    """As somebody's program might: whole, but without what `change` takes."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_an_undamaged_run_goes_on_from_its_last_checkpoint(resumed):
    _, cfg, check = resumed
    assert check(cfg) == []


@pytest.mark.parametrize("bit", [23, 30])
def test_a_flipped_bit_of_a_weight_is_seen_and_the_run_goes_on_from_the_checkpoint_before(resumed, bit):
    directory, cfg, check = resumed
    path = directory.checkpoint_file
    weight = next(iter(torch.load(path, weights_only=True)["state_dict"].values())).reshape(-1)[:8].numpy().tobytes()
    content = bytearray(path.read_bytes())
    at = bytes(content).index(weight)
    content[at + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    (note,) = check(cfg)
    assert note.startswith(f"{path} is no readable checkpoint (the checksum of ")
    assert note.endswith("): the run goes on from previous.ckpt")
    assert Path(f"{path}.damaged").read_bytes() == bytes(content)


def test_any_flipped_bit_is_seen_or_changes_nothing(resumed):
    directory, _, _ = resumed
    path, flips = directory.checkpoint_file, random.Random(0)
    whole = path.read_bytes()
    expected, seen = read_checkpoint(path, [])[CHECKSUM_KEY], 0
    for _ in range(500):
        content = bytearray(whole)
        content[flips.randrange(len(content))] ^= 1 << flips.randrange(8)
        path.write_bytes(content)
        try:
            assert read_checkpoint(path, [])[CHECKSUM_KEY] == expected
        except CheckpointError:
            seen += 1
    # Some lie in the padding between tensors.
    assert seen > 350


MISSING = {
    "optimiser": lambda content: content.pop("optimizer_states"),
    "empty optimiser": lambda content: content["optimizer_states"].clear(),
    "moment": lambda content: content["optimizer_states"][0]["state"][0].pop("exp_avg"),
    "moments": lambda content: content["optimizer_states"][0]["state"].clear(),
    "loop": lambda content: content["loops"].clear(),
    "schedule": lambda content: content.pop("lr_schedulers"),
    "version": lambda content: content.pop("pytorch-lightning_version"),
    "callbacks": lambda content: content.pop("callbacks"),
    "curriculum": lambda content: content["callbacks"].pop("Curriculum"),
    "stage": lambda content: content["callbacks"]["Curriculum"].pop("stage_index"),
    "another stage": lambda content: content["callbacks"]["Curriculum"].update(stage_step=3),
    "curves": lambda content: content["callbacks"].pop("History"),
    "step": lambda content: content.pop("global_step"),
    "loops": lambda content: content.pop("loops"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_checkpoint_that_lacks_something_or_was_changed_is_none(resumed, name):
    path, stateful = resumed[0].checkpoint_file, training_callbacks()
    assert read_checkpoint(path, stateful)["global_step"] == 12
    rewrite(path, MISSING[name])
    with pytest.raises(CheckpointError, match="its checksum is not that of its content"):
        read_checkpoint(path, stateful)
    if name == "another stage":
        return
    # One of an older tree, which has no checksum.
    rewrite(path, lambda content: content.pop(CHECKSUM_KEY))
    with pytest.raises(CheckpointError, match="it lacks "):
        read_checkpoint(path, stateful)


CHANGED = {
    "stage": lambda content: content["callbacks"]["Curriculum"].update(stage_index=77),
    "finished stages": lambda content: content["callbacks"]["Curriculum"].update(finished_stages=[{}] * 3),
    "rows": lambda content: content["callbacks"]["History"].update(rows=[{}]),
    "weights": lambda content: content.update(state_dict=dict.fromkeys(content["state_dict"], "x")),
    "model": lambda content: content.update(model_config="abc"),
    "step": lambda content: content.update(global_step="many"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_an_older_trees_checkpoint_cannot_hold_is_damage(resumed, name):
    path, stateful = resumed[0].checkpoint_file, training_callbacks()
    rewrite(path, lambda content: (content.pop(CHECKSUM_KEY), CHANGED[name](content)))
    before = [callback.state_dict() for callback in stateful]
    with pytest.raises(CheckpointError):
        read_checkpoint(path, stateful)
    assert [callback.state_dict() for callback in stateful] == before


def test_another_runs_checkpoint_is_not_taken_up(resumed, tiny_config):
    """Its numbers would be neither run's."""
    directory, _, _ = resumed
    other = tiny_config(*OVERRIDES, "seed=2")
    place = RunDirectory(other.run_dir).checkpoint_file
    place.parent.mkdir(parents=True)
    shutil.copy(directory.checkpoint_file, place)
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt is a checkpoint of another run, whose config_hash is"):
        run(other)


def test_a_checkpoint_that_lacks_something_is_passed_over(resumed):
    directory, cfg, check = resumed
    rewrite(directory.checkpoint_file, MISSING["optimiser"])
    (note,) = check(cfg)
    assert "its checksum is not that of its content): the run goes on from previous.ckpt" in note


def training_callbacks():
    from palimpsa.training.curriculum import Curriculum, ignore
    from palimpsa.training.history import History, StepLog

    history = History()
    task: Any = SimpleNamespace(stages=[None, None])
    return [history, Curriculum(task, StepLog(history), validation_every=1, log_every=1, report=ignore)]


@pytest.mark.parametrize("content", [b"", b"half a checkpoint"])
def test_without_a_readable_checkpoint_the_run_starts_anew(resumed, content):
    directory, cfg, check = resumed
    for path in (directory.checkpoint_file, directory.previous_checkpoint_file):
        path.write_bytes(content)
    notes = check(cfg)
    assert len(notes) == 2
    assert all(note.endswith("): the run starts anew") for note in notes)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": None}])
def test_a_file_that_is_no_checkpoint_is_passed_over(resumed, content):
    directory, cfg, check = resumed
    torch.save(content, directory.checkpoint_file)
    (note,) = check(cfg)
    assert "last.ckpt is no readable checkpoint" in note


def test_a_kill_between_two_checkpoints_leaves_the_one_before(resumed):
    directory, cfg, check = resumed
    directory.checkpoint_file.unlink()
    assert directory.has_checkpoint()
    assert check(cfg) == []


def test_a_checkpoint_that_may_not_be_read_is_no_damage(resumed, monkeypatch):
    """Rights are lost by accident; a long run is not started anew for them."""
    directory, cfg, _ = resumed

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("palimpsa.training.checkpoint.open_regular", refuse)
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt: cannot be read \(Permission denied\)"):
        run(cfg)
    assert directory.checkpoint_file.exists()


def test_a_pipe_in_place_of_a_checkpoint_does_not_hang(resumed):
    import os

    directory, cfg, _ = resumed
    directory.checkpoint_file.unlink()
    os.mkfifo(directory.checkpoint_file)
    assert stat.S_ISFIFO(directory.checkpoint_file.stat().st_mode)
    assert directory.checkpoint_step() is None
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt: cannot be read \(Not a regular file\)"):
        run(cfg)
