"""Offline W&B runs: read from the file's format, merged by id, uploaded by one line."""

from __future__ import annotations

import time

import pytest

from palimpsa.analysis.dashboard.committed import Cache, Problems
from palimpsa.analysis.dashboard.wandb_files import read_offline_file, read_offline_runs
from palimpsa.runs.schema import ResultError


def read(root):
    problems = Problems()
    runs, hosts = read_offline_runs([root], problems, Cache())
    return runs, hosts, problems.rows


def test_what_wandb_itself_has_written(tmp_path, monkeypatch):
    """The real library, offline, a run longer than a block."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    run = wandb.init(
        project="p", id="real1", name="a <b>", group="g", dir=str(tmp_path), config={"seed": 3}, settings=settings
    )
    for step in range(600):
        run.log({"loss": 5 - step / 200, "window/layer0/head0": 3.0 * step, "note": "text"}, step=10 * step)
    run.finish()
    # It returns before its service has written the last record.
    deadline = time.monotonic() + 300
    while not (runs := read(tmp_path)[0]) or not runs[0].ended:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (found,), hosts, problems = read(tmp_path)
    assert not problems
    assert len(hosts) == 1
    assert (found.run_id, found.name, found.project, found.group, found.ended) == ("real1", "a <b>", "p", "g", True)
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert path.stat().st_size > 2 * 32 * 1024
    assert read_offline_file(path).config == {"seed": 3}
    assert found.history["step"].tolist() == [10 * step for step in range(600)]
    assert found.history["loss"].iloc[-1] == pytest.approx(5 - 599 / 200)
    assert list(found.history.columns) == ["step", "loss", "window_mean", "metaplasticity_mean", "window/layer0/head0"]


def test_a_resumed_run_is_one_run_with_one_line(write_offline_run, tmp_path):
    first, second = (tmp_path / f"runs/a b/wandb/offline-run-2026113{day}_000000-x" for day in (0, 1))
    write_offline_run(second, "x", steps=[20, 30], losses=[0.2, 0.1])
    write_offline_run(first, "x", steps=[0, 10, 20], losses=[3.0, 2.0, 1.0], ended=False)
    write_offline_run(tmp_path / "wandb/offline-run-20261129_000000-y", "y")
    (other, run), _, _ = read(tmp_path)
    assert other.run_id == "y"
    assert run.folders == [first, second]
    assert run.ended
    # The row of step 20 is that of the later file.
    assert run.history["loss"].tolist() == [3.0, 2.0, 0.2, 0.1]


def test_the_same_id_in_another_place_is_another_run(write_offline_run, tmp_path):
    for place, losses in (("a", (3.0, 2.0, 1.0)), ("b", (9.0, 8.0, 7.0))):
        write_offline_run(tmp_path / place / "wandb/offline-run-20261130_010101-abc", "abc", losses=losses)
    runs, _ = read_offline_runs([tmp_path], Problems(), Cache())
    assert [list(run.history["loss"]) for run in runs] == [[3.0, 2.0, 1.0], [9.0, 8.0, 7.0]]
    assert [len(run.folders) for run in runs] == [1, 1]


def test_a_file_that_is_being_written_is_read_as_far_as_it_is(write_offline_run, tmp_path):
    path = write_offline_run(tmp_path / "offline-run-1-x", "x", steps=range(400), losses=[1.0] * 400)
    content = path.read_bytes()
    whole = len(read_offline_file(path).history)
    lengths = set()
    for cut in range(len(content) - 40, len(content)):
        path.write_bytes(content[:cut])
        lengths.add(len(read_offline_file(path).history))
    assert whole == 400
    assert lengths <= {398, 399, 400}
    path.write_bytes(content + bytes(1000))
    assert len(read_offline_file(path).history) == 400


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "no .wandb file"),
        (lambda content: b"PK\3\4" + content[4:], "no .wandb file"),
        (lambda content: content[:7], "holds no run"),
        (lambda content: content[:13] + b"\x09" + content[14:], "damaged at byte 7"),
        (lambda content: content[:14] + b"\xff" * 20 + content[34:], "none of W&B's"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_there(damage, words, write_offline_run, tmp_path):
    path = write_offline_run(tmp_path / "offline-run-1-x", "x")
    write_offline_run(tmp_path / "offline-run-2-y", "y")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResultError, match=words):
        read_offline_file(path)
    runs, _, problems = read(tmp_path)
    assert [run.run_id for run in runs] == ["y"]
    assert len(problems) == 1
    assert str(path) in problems[0][1]


@pytest.mark.parametrize("value", ["9" * 400, "[" * 3000, "[1, 2]", '{"a": 1}', '"Infinity"', "null", "none"])
def test_a_value_that_is_no_number_leaves_the_others_of_its_file(value, write_offline_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("json.dumps", lambda number: value if number == 2.0 else str(number))
        path = write_offline_run(tmp_path / "offline-run-1-x", "x", steps=(0, 10, 20), losses=(3.0, 2.0, 1.0))
    history = read_offline_file(path).history
    assert list(history["step"]) == [0, 10, 20]
    assert list(history["loss"])[::2] == [3.0, 1.0]


def test_a_folder_without_a_file_is_named(tmp_path):
    (tmp_path / "offline-run-1-x").mkdir()
    assert "holds no .wandb file" in read(tmp_path)[2][0][1]
