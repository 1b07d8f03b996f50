"""Progress of a sweep: what jobs tell arrives, once each, and failures are kept."""

import os

from palimpsa.runs.progress import DIRECTORY_VARIABLE, JobProgress, SweepProgress


def test_a_sweep_tells_each_ended_job_once_and_keeps_the_failures(capsys):
    with SweepProgress(3) as sweep:
        for name, status, note in (("a", "finished", "L 16: 90%"), ("b", "failed", "OSError: x"), ("c", "skipped", "")):
            job = JobProgress.from_environment(name, 10)
            job.update(5, "loss 1.0")
            job.finish(status, note)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in lines] == ["[1/3", "[2/3", "[3/3"]
    assert [line.split("] ")[1] for line in lines] == [
        "a: finished, L 16: 90%",
        "b: failed, OSError: x",
        "c: skipped, ",
    ]
    assert sweep.failures == ["b: OSError: x"]
    assert DIRECTORY_VARIABLE not in os.environ


def test_names_and_notes_are_text(capsys, monkeypatch):
    """A bar of a run whose label is in brackets ended the printing of all others."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    name, note = "[red]x[/nope]", ":smile: [/y] $"
    with SweepProgress(2) as sweep:
        running, ending = JobProgress.from_environment(name, 10), JobProgress.from_environment(name, 10)
        running.update(5, note)
        ending.finish("failed", note)
        sweep.print_lines([f"{name} chosen"])
    out = capsys.readouterr().out
    assert f"{name}: failed, {note}" in out
    assert f"{name} chosen" in out
    assert f"{name} " in out.replace(f"{name}: failed", "").replace(f"{name} chosen", "")


def test_jobs_that_end_together_are_told_in_the_order_of_their_ends(capsys):
    names = [f"job {number}" for number in range(8)]
    with SweepProgress(len(names)):
        jobs = {name: JobProgress.from_environment(name, 10) for name in names}
        for job in jobs.values():
            job.update(5, "")
        for name in reversed(names):
            jobs[name].finish("finished", "")
    told = [line.split("] ")[1].split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == names[::-1]


def test_a_single_run_tells_its_end(capsys):
    job = JobProgress.from_environment("alone", 10)
    job.update(0, "compiles")
    job.update(5, "loss 1.0")
    job.finish("finished", "L 16: 90%")
    assert capsys.readouterr().err == "alone: compiles\nalone: finished, L 16: 90%\n"


def test_a_job_that_outlives_its_sweep_has_nobody_to_tell(tmp_path):
    job = JobProgress(str(tmp_path / "gone"), "late", 10)
    job.update(5, "")
    job.finish("finished", "")
    assert not (tmp_path / "gone").exists()
