"""Following a sweep: bars, reasons of failures, curves that grow, and an end that an open page hears of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsa.analysis.dashboard.progress import read_progress
from palimpsa.analysis.dashboard.watch import follow
from palimpsa.runs.progress import DIRECTORY_VARIABLE, JobProgress, SweepProgress


def test_what_jobs_tell_their_sweep_is_what_the_page_shows(tmp_path, capsys):
    folder = tmp_path / ".progress"
    with SweepProgress(5, folder):
        jobs = [JobProgress(str(folder), f"gla lr 0.01 seed {seed}", 100) for seed in range(3)]
        jobs[0].update(40, "loss 1.5")
        jobs[1].finish("failed", "OutOfMemoryError: 80 GB")
        jobs[2].finish("finished", "99 %")
        found = read_progress([tmp_path, tmp_path / "absent"])
    assert found == {
        "total": 5,
        "ended": 2,
        "jobs": [{"name": "gla lr 0.01 seed 0", "step": 40, "total": 100, "note": "loss 1.5"}],
        "failed": [["gla lr 0.01 seed 1", "OutOfMemoryError: 80 GB"]],
    }
    # The sweep takes its directory away.
    assert read_progress([tmp_path])["total"] == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"written": 1}', '{"written": "x", "status": "running"}'])
def test_a_file_of_progress_that_is_none_is_left_out(content, tmp_path):
    folder = tmp_path / ".progress"
    folder.mkdir()
    (folder / "a.json").write_text(content)
    (folder / "num_jobs").write_text("many")
    assert read_progress([tmp_path])["jobs"] == []


def test_a_pipe_among_the_files_of_progress_is_not_waited_for(tmp_path):
    (tmp_path / ".progress").mkdir()
    os.mkfifo(tmp_path / ".progress" / "a.json")
    assert read_progress([tmp_path])["jobs"] == []


def test_an_environment_without_a_sweep_has_no_progress(tmp_path, monkeypatch):
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    assert JobProgress.from_environment("a run", 1).alone
    assert read_progress([tmp_path]) == {"total": 0, "ended": 0, "jobs": [], "failed": []}


def test_following_builds_again_until_it_is_interrupted(add_run, tmp_path, build, write_offline_run):
    """A run begins, its curve grows, it fails; the page is told of each, and at last that nobody follows any more."""
    built = build(tmp_path, watched=True)
    reader = type(built)
    seen = []
    folder = tmp_path / "runs/a"

    def begin() -> None:
        add_run(folder="runs/a", status="failed")
        config = json.loads((folder / "result.json").read_text())["config"]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "result.json").rename(folder / "kept.json")
        (folder / "history.csv").unlink()

    changes = iter(
        [
            begin,
            lambda: write_offline_run(folder / "wandb/offline-run-1-x", "x", ended=False),
            lambda: write_offline_run(folder / "wandb/offline-run-1-x", "x", steps=range(5), losses=[1.0] * 5),
            lambda: (folder / "kept.json").rename(folder / "result.json"),
        ]
    )

    def wait(seconds: float) -> None:
        assert seconds == 3.0
        version = (built.out / "data/version.js").read_text()
        index = reader.__new__(reader)
        index.out = built.out
        state = json.loads((built.out / "data/index.js").read_text().partition(", ")[2].rpartition(")")[0])
        rows = [dict(zip(state["runs"]["columns"], row, strict=True)) for row in state["runs"]["rows"]]
        curves = [index.page_of(row)["curve"] for row in rows]
        seen.append(([row["status"] for row in rows], [len(curve["loss"][0]) if curve else 0 for curve in curves]))
        assert '"watched":true' in version
        change = next(changes, None)
        if change is None:
            raise KeyboardInterrupt
        change()

    follow(built.dashboard, wait=wait)
    assert seen == [
        ([], []),
        (["unfinished"], [0]),
        (["unfinished"], [3]),
        (["unfinished"], [5]),
        (["failed"], [5]),
    ]
    assert '"watched":false' in (built.out / "data/version.js").read_text()
    text = (built.out / "data/index.js").read_text()
    assert "RuntimeError: the loss is nan" in text


def test_a_run_that_a_process_holds_is_running(add_run, tmp_path, build):
    from palimpsa.runs.files import hold_lock

    folder = add_run()
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "result.json").read_text())["config"]))
    (folder / "result.json").unlink()
    with hold_lock(folder / ".lock"):
        assert [run["status"] for run in build(tmp_path).runs] == ["running"]
    assert [run["status"] for run in build(tmp_path).runs] == ["unfinished"]


def test_what_a_killed_sweep_left_is_not_at_work(add_run, tmp_path, build):
    from palimpsa.runs.files import hold_lock

    folder = add_run()
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "result.json").read_text())["config"]))
    (folder / "result.json").unlink()
    with SweepProgress(2, tmp_path / "runs" / ".progress"):
        JobProgress(str(tmp_path / "runs" / ".progress"), "gla lr 0.01 seed 1", 100).update(40, "loss 1.5")
        with hold_lock(folder / ".lock"):
            assert [job["step"] for job in build(tmp_path).index["progress"]["jobs"]] == [40]
        progress = build(tmp_path).index["progress"]
    assert (progress["jobs"], progress["statuses"]) == ([], [["unfinished", 1]])


def test_a_failure_of_which_a_directory_tells_too_is_told_once(add_run, tmp_path, build):
    folder = add_run(status="failed", test=[None, None])
    reason = json.loads((folder / "result.json").read_text())["error"]
    with SweepProgress(3, tmp_path / "runs" / ".progress"):
        for name, why in (("gla lr 0.01 seed 1", reason), ("gla lr 0.1 seed 1", "ConfigError: no")):
            JobProgress(str(tmp_path / "runs" / ".progress"), name, 100).finish("failed", why)
        progress = build(tmp_path).index["progress"]
    assert progress["failed"] == [["gla lr 0.1 seed 1", "ConfigError: no"]]
    assert len(progress["not_finished"]) == 1


def test_an_interrupt_as_the_address_is_told_ends_the_following_in_order(build, tmp_path, capsys):
    def tell() -> None:
        raise KeyboardInterrupt

    assert follow(build(tmp_path, watched=True).dashboard, tell).page.exists()
    assert capsys.readouterr().err == "no longer following\n"
    assert '"watched":false' in (tmp_path / "dashboard/data/version.js").read_text()


def test_following_that_is_terminated_tells_the_open_page(tmp_path):
    """As a scheduler ends it, and not a terminal."""
    script = Path(__file__).resolve().parents[3] / "scripts/dashboard.py"
    command = [sys.executable, str(script), "--results", str(tmp_path), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("file://")
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told.splitlines()[-1]) == (0, "no longer following")
    assert '"watched":false' in (tmp_path / "dashboard/data/version.js").read_text()
