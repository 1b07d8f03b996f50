"""Collecting: merges, repetitions, contradictions, and the same bytes every time."""

from __future__ import annotations

import json
import shutil

import pytest

from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.runs.read import read_curves_csv, read_runs_csv
from palimpsa.runs.schema import ResultError

FILES = ["curves.csv", "provenance.json", "runs.csv"]


def gather(tmp_path, *roots, full_curves=False):
    out = tmp_path / "mqar"
    collected = collect([tmp_path / root for root in roots or ["runs"]], out, full_curves=full_curves)
    write_collected(collected, out)
    return collected


def contents(tmp_path):
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "mqar").iterdir())}


def test_collects_every_stage_and_curve(add_run, tmp_path):
    add_run(model="palimpsa_d", seed=1)
    add_run(model="gla", seed=1)
    add_run(model="gla", seed=2, steps=None)
    add_run(task="commonsense")
    collected = gather(tmp_path, full_curves=True)
    assert (collected.num_found, collected.num_kept, collected.num_other) == (3, 0, 1)
    assert [path.name for path in collected.no_history] == ["seed_2"]
    assert list(contents(tmp_path)) == FILES
    runs = read_runs_csv(tmp_path / "mqar" / "runs.csv")
    assert runs["model"].tolist() == ["gla"] * 6 + ["palimpsa_d"] * 3
    curves = read_curves_csv(tmp_path / "mqar" / "curves.csv")
    assert curves.groupby(["model", "seed"]).size().to_dict() == {("gla", 1): 31, ("palimpsa_d", 1): 31}
    gla = curves[curves["model"] == "gla"]
    assert gla["metaplasticity_mean"].isna().all()
    assert gla["window/layer1/head1"].notna().sum() == 7
    assert list(curves.columns[-4:]) == [
        f"metaplasticity/layer{layer}/head{head}" for layer in (0, 1) for head in (0, 1)
    ]


def test_full_curves_have_every_logged_step_at_every_rate_to_six_digits(add_run, tmp_path):
    add_run(lr=0.0046415888336)
    add_run(lr=0.01, validation=[0.5, 0.5])
    add_run(lr=0.02, status="failed")
    gather(tmp_path, full_curves=True)
    curves = read_curves_csv(tmp_path / "mqar" / "curves.csv")
    assert curves.groupby("lr").size().to_dict() == {0.0046415888336: 31, 0.01: 31, 0.02: 31}
    lines = (tmp_path / "mqar" / "curves.csv").read_text().splitlines()
    cells = lines[2].split(",")
    assert cells[3] == "0.0046415888336"
    losses = [line.split(",")[8] for line in lines[2:]]
    assert all(len(loss.replace(".", "").lstrip("0")) <= 6 for loss in losses)


def test_collecting_twice_gives_the_same_bytes(add_run, tmp_path):
    for seed in (2, 1):
        add_run(seed=seed, validation=[1 / 3, 0.1 + 0.2])
    gather(tmp_path)
    first = contents(tmp_path)
    gather(tmp_path)
    assert contents(tmp_path) == first
    # And from the files alone, with other runs on disk.
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    add_run(seed=2, validation=[1 / 3, 0.1 + 0.2])
    assert gather(tmp_path).num_kept == 1
    assert contents(tmp_path) == first


def test_runs_of_another_machine_are_kept_and_known_ones_replaced(add_run, tmp_path):
    add_run(seed=1, validation=[0.5, 0.5], steps=100)
    add_run(seed=2, validation=[0.6, 0.6], steps=100)
    gather(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    add_run(seed=2, validation=[0.7, 0.7], steps=200)
    add_run(seed=3, validation=[0.8, 0.8], steps=200)
    collected = gather(tmp_path)
    assert (collected.num_found, collected.num_kept) == (2, 1)
    runs = read_runs_csv(tmp_path / "mqar" / "runs.csv")
    tested = runs[runs["seq_len"] == 64].set_index("seed")["test_accuracy"]
    assert tested.to_dict() == {1: 0.5, 2: 0.7, 3: 0.8}
    curves = read_curves_csv(tmp_path / "mqar" / "curves.csv")
    assert curves.groupby("seed")["step"].max().to_dict() == {1: 100, 2: 200, 3: 200}


def test_folders_from_other_machines_are_merged(add_run, tmp_path):
    add_run(seed=1)
    add_run(seed=2, folder="brought/a")
    # The same run twice, timed differently.
    add_run(seed=1, folder="brought/b", wall_time_s=99.0)
    collected = gather(tmp_path, "runs", "brought")
    assert (collected.num_found, collected.num_duplicates) == (2, 1)
    assert collected.runs.groupby("seed")["wall_time_s"].first().to_dict() == {1: 36.0, 2: 36.0}


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"test": [0.5, 0.5]}, "stage 1: test_accuracy 0.9 and 0.5"),
        ({"lengths": [32], "validation": [0.9]}, "3 and 2 stages"),
    ],
    ids=["accuracy", "stages"],
)
def test_contradicting_directories_are_both_named(add_run, tmp_path, change, detail):
    add_run(seed=5)
    gather(tmp_path)
    before = contents(tmp_path)
    first, second = add_run(seed=1, folder="runs/a"), add_run(seed=1, folder="runs/b", **change)
    with pytest.raises(ResultError, match="hold different results of the same run") as caught:
        gather(tmp_path)
    assert f"{first} and {second}" in str(caught.value)
    assert "model palimpsa_d, lr 0.001, seed 1" in str(caught.value)
    assert detail in str(caught.value)
    assert contents(tmp_path) == before


def test_lengths_of_the_scratch_protocol_are_runs_of_their_own(add_run, tmp_path):
    for length, accuracy in ((32, 0.9), (64, 0.6)):
        add_run(task="mqar_scratch", lengths=[length], validation=[accuracy])
    assert gather(tmp_path).num_found == 2


def test_provenance_counts_runs(add_run, tmp_path):
    add_run(seed=1, wall_time_s=1800)
    add_run(seed=2, wall_time_s=5400, status="failed")
    add_run(seed=1, scale="h200")
    gather(tmp_path)
    found = json.loads((tmp_path / "mqar" / "provenance.json").read_text())
    assert sorted(found) == ["mqar_curriculum/h200", "mqar_curriculum/laptop"]
    assert found["mqar_curriculum/laptop"] == {
        "num_runs": 2,
        "num_finished": 1,
        "num_failed": 1,
        "git_revisions": ["f00dfeed"],
        "devices": ["a processor, 2 threads"],
        "versions": {"python": ["3.11.7"], "torch": ["2.13.0"]},
        "wall_hours": 2.0,
        "started": ["2026-11-22T20:00:00+00:00"] * 2,
        "commands": ["train.py -m +sweep=mqar_figure2"],
    }


def test_provenance_says_when_the_tree_was_edited(add_run, tmp_path):
    path = add_run() / "result.json"
    path.write_text(path.read_text().replace('"git_dirty": false', '"git_dirty": true'))
    gather(tmp_path)
    # Once more, from the cells of runs.csv.
    path.unlink()
    add_run(seed=2)
    gather(tmp_path)
    found = json.loads((tmp_path / "mqar" / "provenance.json").read_text())
    assert found["mqar_curriculum/laptop"]["git_revisions"] == ["f00dfeed", "f00dfeed+changes"]
    # A copy of the tree that was told its revision: nobody looked.
    path = add_run(seed=3) / "result.json"
    path.write_text(path.read_text().replace('"git_dirty": false', '"git_dirty": null'))
    gather(tmp_path)
    found = json.loads((tmp_path / "mqar" / "provenance.json").read_text())
    revisions = ["f00dfeed", "f00dfeed+changes", "f00dfeed+unchecked"]
    assert found["mqar_curriculum/laptop"]["git_revisions"] == revisions


def test_provenance_sums_the_hours_that_gpus_were_held(add_run, tmp_path):
    add_run(scale="h200")
    sessions = tmp_path / "mqar" / "gpu_sessions.csv"
    sessions.parent.mkdir()
    header = "started,device,num_gpus,held_s,git_revision,num_finished,what\n"
    rows = [
        "2026-01-01,an H100,2,1800,cafe,1,first",
        "2026-01-02,an H100,8,900,f00d,0,again",
        "2026-01-03,an H200,1,36,f00d,0,x",
    ]
    sessions.write_text(header + "\n".join(rows) + "\n")
    gather(tmp_path)
    found = json.loads((tmp_path / "mqar" / "provenance.json").read_text())
    assert found["gpu_sessions"] == {
        "num_sessions": 3,
        "gpu_hours": {"an H100": 3.0, "an H200": 0.01},
        "git_revisions": ["cafe", "f00d"],
    }
    sessions.write_text(header.replace("held_s,", "") + "\n".join(rows) + "\n")
    with pytest.raises(ResultError, match=r"gpu_sessions.csv: column held_s is missing"):
        gather(tmp_path)


def test_no_run_is_an_error(tmp_path):
    (tmp_path / "runs" / "unfinished" / ".hydra").mkdir(parents=True)
    with pytest.raises(ResultError, match=r"no run found below .*runs \(1 without result.json\)"):
        gather(tmp_path)
    assert not (tmp_path / "mqar").exists()


def test_script_reports_what_it_found(add_run, run_script, tmp_path):
    add_run(seed=1)
    add_run(seed=2, status="failed", folder="far/away")
    (tmp_path / "runs" / "unfinished" / ".hydra").mkdir(parents=True)
    arguments = ["--runs", "runs", "--out", "mqar", "--from", "far"]
    code, out, err = run_script("collect_results.py", *arguments)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "runs found: 2",
        "failed: 1",
        "directories without result.json, left out: 1",
        "mqar/runs.csv",
        "mqar/curves.csv",
        "mqar/provenance.json",
    ]


@pytest.mark.parametrize("problem", ["no-run", "truncated", "unwritable"])
def test_script_errors_are_one_line(add_run, run_script, tmp_path, problem):
    if problem == "truncated":
        (add_run() / "result.json").write_text('{"format": 1, ')
    if problem == "unwritable":
        add_run()
        # A file where a folder should be: refused to every user, root too.
        (tmp_path / "mqar").touch()
    code, _, err = run_script("collect_results.py", "--runs", "runs", "--out", "mqar")
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_a_failed_run_does_not_displace_a_finished_row(add_run, tmp_path):
    add_run(seed=1, validation=[0.5, 0.5], steps=200)
    add_run(seed=2, status="failed")
    gather(tmp_path)
    before = contents(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    folder = add_run(seed=1, status="failed", validation=[0.9], lengths=[32], steps=50)
    add_run(seed=2, status="failed")
    collected = gather(tmp_path)
    assert contents(tmp_path) == before
    assert (collected.num_found, collected.num_kept) == (2, 1)
    assert f"kept the finished run of the older runs.csv: {folder} holds a failed one" in collected.report()


def test_a_failed_run_alone_leaves_the_finished_row(add_run, tmp_path):
    add_run(seed=1)
    gather(tmp_path)
    before = contents(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    add_run(seed=1, status="failed", steps=None)
    gather(tmp_path)
    assert contents(tmp_path) == before
