"""The ledger: what it reads from the directories of a sweep's runs, and that it leaves them as they are."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from rich.console import Console

from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.schema import plain
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import LockHeldError, hold_lock, lock_holder
from palimpsa.runs.identity import config_hash
from palimpsa.runs.result import checksum
from palimpsa.runs.schema import CHECKSUM
from palimpsa.sweeps.ledger import MAX_LINES, RESUMABLE, Entry, Job, Ledger, survey_runs


@pytest.fixture
def job_of(tiny_config):
    def make(*overrides: str) -> Job:
        return Job(overrides, plain(tiny_config("model=mamba2", *overrides)))

    return make


@pytest.fixture
def finished_job(finished_run, job_of) -> Job:
    """A finished run of seed 1."""
    job = job_of()
    shutil.copytree(finished_run, job.directory)
    return job


def change_result(job: Job, **values: object) -> None:
    """As this job might have written it, with a checksum that fits."""
    file = job.directory / "result.json"
    result = json.loads(file.read_text())
    result |= {"config": job.config, "config_hash": config_hash(job.config), "run": result["run"] | {"seed": job.seed}}
    result |= values
    file.write_text(json.dumps(result | {CHECKSUM: checksum(result)}))


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_statuses_are_read_from_the_directories_which_stay_as_they_are(finished_job, job_of, tmp_path):
    failed, begun, started, missing = (job_of(f"seed={seed}") for seed in (2, 3, 4, 5))
    for job in (failed, begun, started):
        shutil.copytree(finished_job.directory, job.directory)
        (job.directory / "config.json").write_text(json.dumps(job.config))
    change_result(failed, status="failed", error="OSError: no\n space")
    (begun.directory / "result.json").unlink()
    for name in ("result.json", "checkpoints/last.ckpt"):
        (started.directory / name).unlink()
    before = files(tmp_path)
    entries = survey_runs([finished_job, failed, begun, started, missing])
    assert [(entry.status, entry.detail) for entry in entries] == [
        ("finished", ""),
        ("failed", "OSError: no space"),
        ("missing", RESUMABLE),
        ("missing", ""),
        ("missing", ""),
    ]
    assert [entry.job.seed for entry in entries] == [1, 2, 3, 4, 5]
    ledger = Ledger(entries, {})
    assert ledger.detail_lines() == [
        "failed: mamba2 lr 0.00464 seed 2: OSError: no space",
        "to be continued: mamba2 lr 0.00464 seed 3: from step 16",
    ]
    assert ledger.jobs_to_launch() == [failed, begun, started, missing]
    assert files(tmp_path) == before
    assert not missing.directory.exists()


def test_a_run_at_work_is_told_with_its_process(finished_job, job_of):
    other = job_of("seed=2")
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with RunDirectory(other.directory).locked(), RunDirectory(finished_job.directory).locked():
        entries = survey_runs([finished_job, other])
        # Looking at it takes nothing from the process at work.
        assert entries == survey_runs([finished_job, other])
    assert [(entry.status, entry.detail) for entry in entries] == [("finished", ""), ("running", holder)]
    assert Ledger(entries, {}).detail_lines() == [f"running: mamba2 lr 0.00464 seed 2: {holder}"]
    assert survey_runs([other])[0].status == "missing"


def test_a_lock_is_held_by_one_and_says_by_whom(tmp_path):
    file = tmp_path / "lock"
    assert lock_holder(file) is None
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with hold_lock(file):
        assert lock_holder(file) == holder
        with pytest.raises(LockHeldError, match=holder), hold_lock(file):
            pass
    assert lock_holder(file) is None
    with hold_lock(file):
        file.write_text("")
        assert lock_holder(file) == "a process that does not say which"


def test_a_run_takes_a_lock_that_was_only_looked_at(tmp_path, monkeypatch):
    """A look holds the lock for a moment; a run that wants it in that moment tries again."""
    file = (tmp_path / "lock").open("w")
    looks = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        file.close()

    import fcntl

    fcntl.flock(file, fcntl.LOCK_SH)
    monkeypatch.setattr("palimpsa.runs.files.time.sleep", wait)
    with hold_lock(tmp_path / "lock"):
        assert len(looks) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES = {
    "result": (lambda job: cut(job.directory / "result.json"), r"result\.json: got \d+ bytes that are not JSON"),
    "config": (lambda job: cut(job.directory / "config.json"), r"config\.json: got \d+ bytes that are not JSON"),
    "history": (lambda job: cut(job.directory / "history.csv"), r"history\.csv: got \d+ whole rows, expected the 1\d "),
    "value": (lambda job: change_result(job, status="done"), r"result\.json: status is \"done\", expected .*Delete it"),
    "key": (lambda job: change_result(job, run={}), r"result\.json: run\.task is missing, expected .*Delete it"),
    "format": (lambda job: change_result(job, format=4), r"result\.json: format is 4, expected .* format 3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage, finished_job, job_of):
    do, told = DAMAGES[damage]
    do(finished_job)
    with pytest.raises(RunDirectoryError, match=told) as caught:
        survey_runs([job_of("seed=2"), finished_job])
    assert "\n" not in str(caught.value)


def test_a_run_of_another_config_is_named_with_the_key(finished_job, job_of):
    other = job_of("optimizer.weight_decay=0.2")
    with pytest.raises(RunDirectoryError) as caught:
        survey_runs([other, other])
    message = f"run_dir: {other.directory} holds a run of another config (optimizer.weight_decay: stored 0.1, now 0.2)."
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("(and so for 1 more of the sweep's directories)")
    # A run that has not ended yet has its config alone.
    (finished_job.directory / "result.json").unlink()
    with pytest.raises(RunDirectoryError, match="holds a run of another config"):
        survey_runs([other])


def test_curves_that_are_gone_or_not_counted_cost_no_result(finished_job):
    (finished_job.directory / "history.csv").write_text("step\n")
    change_result(finished_job, metrics={})
    assert survey_runs([finished_job])[0].status == "finished"
    (finished_job.directory / "history.csv").unlink()
    assert survey_runs([finished_job])[0].status == "finished"


def text_of(ledger: Ledger) -> list[list[str]]:
    console = Console(width=80)
    with console.capture() as capture:
        ledger.print(console, "a title")
    return [line.split() for line in capture.get().splitlines()]


def test_the_table_has_a_row_a_model_and_one_of_sums(job_of):
    jobs = [job_of(f"seed={seed}", *other) for other in ([], ["variant=_b"]) for seed in (1, 2)]
    statuses = ("finished", "failed", "running", "missing")
    ledger = Ledger([Entry(job, status) for job, status in zip(jobs, statuses, strict=True)], {})
    assert text_of(ledger) == [
        ["a", "title"],
        ["model", "finished", "running", "failed", "missing", "runs"],
        ["mamba2", "1", "0", "1", "0", "2"],
        ["mamba2_b", "0", "1", "0", "1", "2"],
        ["all", "1", "1", "1", "1", "4"],
    ]
    assert not ledger.complete
    waiting = Ledger(ledger.entries[:1], {jobs[0].group: 3})
    assert text_of(waiting)[1:] == [
        ["model", "finished", "running", "failed", "missing", "waiting", "runs"],
        ["mamba2", "1", "0", "0", "0", "3", "4"],
    ]
    assert waiting.num_runs == 4
    assert not waiting.complete
    assert Ledger(ledger.entries[:1], {}).complete


def test_long_lists_are_cut_and_several_tasks_told_apart(job_of):
    jobs = [job_of("seed=0")] * (MAX_LINES + 3)
    for status, detail, kind in (
        ("failed", "x", "failed"),
        ("running", "x", "running"),
        ("missing", RESUMABLE, RESUMABLE),
    ):
        lines = Ledger([Entry(job, status, detail) for job in jobs], {}).detail_lines()
        assert len(lines) == MAX_LINES + 1
        assert lines[-1] == f"{kind}: 3 more"
    scratch = job_of("task=mqar_scratch", "task.stages=null", "task.seq_len=16")
    ledger = Ledger([Entry(jobs[0], "failed", "x"), Entry(scratch, "failed", "y")], {})
    assert ledger.detail_lines() == [
        "failed: mqar_curriculum/laptop mamba2 lr 0.00464 seed 0: x",
        "failed: mqar_scratch_L16/laptop mamba2 lr 0.00464 seed 1: y",
    ]
    assert [row[0] for row in text_of(ledger)[2:]] == [
        "mqar_curriculum/laptop/mamba2",
        "mqar_scratch/laptop/mamba2",
        "all",
    ]


def test_what_diverged_is_final_and_what_failed_otherwise_is_left(finished_job, job_of):
    diverged, failed = (job_of(f"seed={seed}") for seed in (2, 3))
    ends = (("diverged", "FloatingPointError: the loss is nan"), ("failed", "OSError: no space"))
    for job, (status, error) in zip((diverged, failed), ends, strict=True):
        shutil.copytree(finished_job.directory, job.directory)
        (job.directory / "config.json").write_text(json.dumps(job.config))
        change_result(job, status=status, error=error)
    entries = survey_runs([finished_job, diverged, failed])
    assert [entry.status for entry in entries] == ["finished", "diverged", "failed"]
    assert [entry.is_final for entry in entries] == [True, True, False]
    ledger = Ledger(entries, {})
    assert ledger.jobs_to_launch() == [failed]
    assert not ledger.complete
    assert Ledger(entries[:2], {}).complete
    assert ledger.detail_lines() == [
        "failed: mamba2 lr 0.00464 seed 3: OSError: no space",
        "diverged: mamba2 lr 0.00464 seed 2: FloatingPointError: the loss is nan",
    ]
    assert text_of(ledger)[1:] == [
        ["model", "finished", "running", "failed", "diverged", "missing", "runs"],
        ["mamba2", "1", "0", "1", "1", "0", "3"],
    ]
