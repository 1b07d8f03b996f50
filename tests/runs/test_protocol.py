"""Runs of one figure share a protocol: what belongs to it, and what happens when two meet."""

from __future__ import annotations

import shutil

import pytest

from palimpsa.analysis.build import build_runs
from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.runs.read import read_curves_csv, read_runs_csv
from palimpsa.runs.schema import ResultError


def gather(tmp_path, *roots):
    out = tmp_path / "mqar"
    collected = collect([tmp_path / root for root in roots or ["runs"]], out)
    write_collected(collected, out)
    return collected


def test_lengths_of_the_scratch_protocol_share_it(add_run, tmp_path):
    for length in (32, 64):
        add_run(task="mqar_scratch", lengths=[length], validation=[0.5])
    assert gather(tmp_path).runs["protocol_hash"].nunique() == 1


def test_two_protocols_on_disk_are_an_error_that_names_the_key(add_run, tmp_path):
    add_run(seed=1)
    add_run(seed=2, stop_accuracy=0.9)
    with pytest.raises(ResultError, match="finished runs of different protocols") as caught:
        gather(tmp_path)
    message = str(caught.value)
    assert "task.stop_accuracy: 0.99 and 0.9" in message
    assert "lr 0.001, seed 1)" in message
    assert "lr 0.001, seed 2)" in message
    assert "Collect them apart" in message
    assert not (tmp_path / "mqar").exists()


def test_two_protocols_in_runs_csv_make_no_figure(add_run, tmp_path):
    add_run(seed=1)
    gather(tmp_path)
    hashes = read_runs_csv(tmp_path / "mqar" / "runs.csv")["protocol_hash"].tolist()
    path = tmp_path / "mqar" / "runs.csv"
    lines = path.read_text().splitlines()
    others = [line.replace(",0.001,1,", ",0.001,2,").replace(hashes[0], "f" * 16) for line in lines[1:]]
    path.write_text("\n".join([*lines, *others]) + "\n")
    with pytest.raises(ResultError, match=f"{hashes[0]} .*seed 1. and {'f' * 16} .*seed 2.; expected one protocol"):
        list(build_runs(tmp_path / "mqar"))


def test_a_failed_run_of_another_protocol_is_no_contradiction(add_run, tmp_path):
    add_run(seed=1)
    add_run(seed=2, stop_accuracy=0.9, status="failed")
    gather(tmp_path)
    (report,) = build_runs(tmp_path / "mqar")
    assert report.paths


def test_scales_have_protocols_of_their_own(add_run, tmp_path):
    add_run(seed=1)
    add_run(seed=1, scale="h200", stop_accuracy=0.9)
    gather(tmp_path)
    assert len(list(build_runs(tmp_path / "mqar"))) == 2


def test_rows_of_an_older_protocol_are_dropped_and_reported(add_run, tmp_path):
    for seed in (1, 2):
        add_run(seed=seed)
    add_run(seed=1, scale="h200")
    gather(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    add_run(seed=3, stop_accuracy=0.9)
    collected = gather(tmp_path)
    for frame in (read_runs_csv(tmp_path / "mqar" / "runs.csv"), read_curves_csv(tmp_path / "mqar" / "curves.csv")):
        places = sorted(set(zip(frame["scale"], frame["seed"], strict=True)))
        assert places == [("h200", 1), ("laptop", 3)]
    assert collected.num_kept == 1
    (note,) = [line for line in collected.report() if "dropped" in line]
    assert note.startswith("dropped from the older runs.csv, mqar_curriculum/laptop: 2 runs of protocol ")


def test_a_failed_run_of_a_new_protocol_drops_nothing(add_run, tmp_path):
    add_run(seed=1)
    gather(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    add_run(seed=2, stop_accuracy=0.9, status="failed")
    assert gather(tmp_path).runs.groupby("seed")["status"].first().to_dict() == {1: "finished", 2: "failed"}
