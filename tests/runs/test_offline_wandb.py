"""Offline runs on disk: found at any depth, merged by their ids, and uploaded by one line each."""

import subprocess
from pathlib import Path

import pytest

from palimpsa.runs.offline_wandb import find_offline_runs, nameless_sync_line


@pytest.fixture
def folder_of(tmp_path):
    """A folder as wandb leaves it: `folder_of("runs/a", "20261130_054244", "abc")`."""

    def make(directory: str, begun: str, run_id: str, *, content: bool = True, synced: bool = False) -> Path:
        folder = tmp_path / directory / "wandb" / f"offline-run-{begun}-{run_id}"
        folder.mkdir(parents=True)
        if content:
            (folder / f"run-{run_id}.wandb").write_bytes(b":W&B")
        if synced:
            (folder / f"run-{run_id}.wandb.synced").touch()
        return folder

    return make


def test_no_folder_and_an_empty_one_hold_none(tmp_path):
    assert find_offline_runs(tmp_path / "nowhere") == []
    assert find_offline_runs(tmp_path) == []


def test_the_folders_of_one_run_are_merged_in_the_order_of_their_beginnings(folder_of, tmp_path):
    second = folder_of("runs/b", "20261130_060000", "abc")
    first = folder_of("runs/b", "20261130_054244", "abc", synced=True)
    other = folder_of("runs/a/deep er", "20261130_070000", "with-hyphen")
    (tmp_path / "runs/b/wandb/latest-run").symlink_to(second)
    runs = find_offline_runs(str(tmp_path))
    assert [run.run_id for run in runs] == ["with-hyphen", "abc"]
    assert runs[1].folders == (first, second)
    assert runs[1].files == (first / "run-abc.wandb", second / "run-abc.wandb")
    assert runs[1].directory == tmp_path / "runs/b"
    assert runs[1].sync_line == f"wandb sync {first} {second}"
    # A blank does not end a path.
    assert runs[0].sync_line == f"wandb sync '{other}'"
    assert not runs[1].is_synced


def test_the_same_id_in_two_directories_is_two_runs(folder_of):
    for directory in ("here/run", "there/run"):
        folder_of(directory, "20261130_060000", "abc")
    assert len(find_offline_runs(folder_of("x", "20261130_060001", "y").parents[2])) == 3


def test_what_is_uploaded_or_has_nothing_to_upload_is_told_apart(folder_of, tmp_path):
    folder_of("a", "20261130_060000", "done", synced=True)
    folder_of("b", "20261130_060000", "killed", content=False)
    (tmp_path / "c/wandb/offline-run-nonsense").mkdir(parents=True)
    (run,) = find_offline_runs(tmp_path)
    assert run.run_id == "done"
    assert run.is_synced


@pytest.mark.parametrize(
    ("here", "shown"),
    [
        ("home/jane/work", "~/'my runs/offline-run-1'"),
        ("home/jane", "'my runs/offline-run-1'"),
        ("home", "~/'my runs/offline-run-1'"),
        ("elsewhere", "~/'my runs/offline-run-1'"),
    ],
    ids=lambda value: value.replace("/", "_"),
)
def test_a_line_for_others_names_no_home_and_means_the_same_folder(here, shown, tmp_path, monkeypatch):
    folder = tmp_path / "home/jane/my runs/offline-run-1"
    for path in (folder, tmp_path / here):
        path.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/jane"))
    monkeypatch.chdir(tmp_path / here)
    line = nameless_sync_line([folder, folder])
    assert line == f"wandb sync {shown} {shown}"
    told = subprocess.run(["sh", "-c", f'wandb() {{ cd "$2" && pwd; }}; {line}'], capture_output=True, text=True)
    assert told.stdout.strip() == str(folder)


def test_a_line_for_others_of_no_home_is_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert nameless_sync_line([tmp_path / "a b"]) == f"wandb sync '{tmp_path}/a b'"
