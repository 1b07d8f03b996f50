"""Results of several machines: what merges, which run of several is taken, and that nothing finished is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from palimpsa.analysis.collect import run_directories
from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.runs.read import find_run_dirs, read_curves_csv, read_runs_csv
from palimpsa.runs.schema import ResultError

NO_SPACE = "OSError: [Errno 28] No space left on device"


def gather(tmp_path, *roots):
    out = tmp_path / "mqar"
    collected = collect([tmp_path / root for root in roots], out, full_curves=True)
    write_collected(collected, out)
    return collected


def contents(tmp_path):
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "mqar").iterdir())}


def edit(folder: Path, *places, value) -> Path:
    """Sets result.json's value at `places`; returns its path."""
    path = folder / "result.json"
    result = block = json.loads(path.read_text())
    for key in places[:-1]:
        block = block[key]
    block[places[-1]] = value
    path.write_text(json.dumps(result))
    return path


def statuses(collected) -> dict[int, str]:
    return collected.runs.groupby("seed")["status"].first().to_dict()


def test_overlapping_machines_give_the_rows_of_one(add_run, tmp_path):
    for seed in (1, 2):
        add_run(seed=seed, folder=f"one/{seed}")
    for seed in (2, 3):
        folder = add_run(seed=seed, folder=f"two/{seed}", wall_time_s=99.0)
        # Another machine, other versions, another spelling of the name in figures: still the same result.
        edit(folder, "provenance", "device", value="another processor")
        edit(folder, "provenance", "versions", value={"python": "3.12.1"})
        edit(folder, "run", "label", value="Palimpsa D")
        edit(folder, "config", "model", "label", value="Palimpsa D")
    collected = gather(tmp_path, "one", "two")
    assert (collected.num_found, collected.num_duplicates, collected.notes) == (3, 1, [])
    assert statuses(collected) == {1: "finished", 2: "finished", 3: "finished"}
    assert collected.runs.groupby("seed")["wall_time_s"].first().to_dict() == {1: 36.0, 2: 36.0, 3: 99.0}
    # One curve a run, and not the sum of two.
    assert collected.curves.groupby("seed").size().to_dict() == {1: 31, 2: 31, 3: 31}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids=["failed-first", "finished-first"])
def test_a_finished_run_wins_over_failed_ones_of_other_machines(add_run, tmp_path, order):
    failed = add_run(folder="a/1", status="failed", validation=[0.9], lengths=[32], steps=50)
    edit(failed, "error", value=NO_SPACE)
    add_run(folder="a/2", status="failed", validation=[], lengths=[], steps=None)
    finished = add_run(folder="b/1")
    collected = gather(tmp_path, *order)
    assert statuses(collected) == {1: "finished"}
    assert collected.runs["test_accuracy"].tolist()[1:] == [0.9, 0.8]
    assert len(collected.curves) == 31
    first = f"took the finished run of {finished}: {failed} failed ({NO_SPACE})"
    assert first in collected.report()
    assert len(collected.notes) == 2


def test_a_finished_run_replaces_the_failed_one_of_the_older_csv(add_run, tmp_path):
    add_run(folder="a/1", status="failed", validation=[0.9], lengths=[32], steps=50)
    gather(tmp_path, "a")
    add_run(folder="b/1")
    collected = gather(tmp_path, "b")
    assert statuses(collected) == {1: "finished"}
    assert len(read_runs_csv(tmp_path / "mqar" / "runs.csv")) == 3
    assert len(read_curves_csv(tmp_path / "mqar" / "curves.csv")) == 31
    # And the other way round: the finished one stays, and the report says so.
    again = gather(tmp_path, "a")
    assert statuses(again) == {1: "finished"}
    assert again.notes == [f"kept the finished run of the older runs.csv: {tmp_path / 'a/1'} holds a failed one"]


def test_of_failed_runs_the_one_that_came_further_is_kept(add_run, tmp_path):
    short = add_run(folder="a/1", status="failed", validation=[], lengths=[], steps=None)
    long = add_run(folder="b/1", status="failed", validation=[0.9], lengths=[32], steps=None)
    edit(long, "error", value=NO_SPACE)
    collected = gather(tmp_path, "a", "b")
    assert collected.runs["error"].unique().tolist() == [NO_SPACE]
    assert collected.notes == [f"took the failed run of {long}: {short} failed (RuntimeError: the loss is nan)"]


def test_two_finished_results_name_both_directories_and_the_first_number(add_run, tmp_path):
    add_run(folder="c/1", seed=7)
    gather(tmp_path, "c")
    before = contents(tmp_path)
    # The failed one between them makes no difference.
    first, second = add_run(folder="a/1"), add_run(folder="b/deep/1", test=[0.9, 0.75], validation=[0.9, 0.8])
    add_run(folder="a/2", status="failed", validation=[], lengths=[], steps=None)
    with pytest.raises(ResultError) as caught:
        gather(tmp_path, "a", "b")
    message = str(caught.value)
    assert message.startswith(f"{first} and {second} hold different results of the same run (task mqar_curriculum")
    assert "stage 2: test_accuracy 0.8 and 0.75" in message
    assert len(message.splitlines()) == 1
    assert contents(tmp_path) == before


def test_every_disagreement_is_named_at_once(add_run, tmp_path):
    pairs = []
    for seed in (1, 2, 3):
        first = add_run(folder=f"a/{seed}", seed=seed)
        test = [0.9, 0.8] if seed == 2 else [0.9, 0.7]
        pairs.append((first, add_run(folder=f"b/{seed}", seed=seed, test=test)))
    with pytest.raises(ResultError) as caught:
        gather(tmp_path, "a", "b")
    named = [f"{one} and {other} hold different results" in str(caught.value) for one, other in pairs]
    assert named == [True, False, True]
    assert str(caught.value).count("Nothing was written") == 1


def test_equal_results_with_other_curves_are_an_error_that_names_both(add_run, tmp_path):
    add_run(folder="c/1", seed=7)
    gather(tmp_path, "c")
    before = contents(tmp_path)
    files = [add_run(folder=f"{root}/1") / "history.csv" for root in ("a", "b")]
    lines = files[1].read_text().splitlines(keepends=True)
    column = lines[0].strip().split(",").index("loss")
    cells = lines[1].split(",")
    cells[column] = "123.0"
    files[1].write_text("".join([lines[0], ",".join(cells), *lines[2:]]))
    for roots in (("a", "b"), ("b", "a")):
        with pytest.raises(ResultError, match="hold different curves of the same run") as caught:
            gather(tmp_path, *roots)
        assert all(str(file) in str(caught.value) for file in files)
    assert contents(tmp_path) == before


def test_the_disagreement_names_the_config_key_behind_it(add_run, tmp_path):
    add_run(folder="a/1")
    add_run(folder="b/1", stop_accuracy=0.9, validation=[0.9, 0.5])
    with pytest.raises(ResultError, match=r"their configs differ in task\.stop_accuracy: 0\.99 and 0\.9"):
        gather(tmp_path, "a", "b")


def test_runs_of_two_protocols_name_their_directories(add_run, tmp_path):
    first, second = add_run(folder="a/1", seed=1), add_run(folder="b/2", seed=2, stop_accuracy=0.9)
    with pytest.raises(ResultError, match="finished runs of different protocols") as caught:
        gather(tmp_path, "a", "b")
    assert str(caught.value).startswith(f"{first} and {second}: ")


def test_another_result_than_that_of_the_older_csv_is_reported(add_run, tmp_path):
    for seed in (1, 2):
        add_run(folder=f"a/{seed}", seed=seed)
    gather(tmp_path, "a")
    changed = add_run(folder="b/1", seed=1, validation=[0.9, 0.7])
    add_run(folder="b/2", seed=2)
    collected = gather(tmp_path, "b")
    (note,) = collected.notes
    assert note.startswith("finished runs of the older runs.csv replaced by other results on disk: 1, the first ")
    assert f"{changed} (task mqar_curriculum, scale laptop, model palimpsa_d, lr 0.001, seed 1)" in note
    assert note.endswith("stage 2: validation_accuracy 0.8 and 0.7")
    assert collected.runs.loc[collected.runs["seq_len"] == 64, "test_accuracy"].tolist() == [0.7, 0.8]


@pytest.mark.parametrize("cut", [0, 1, 300, -1], ids=["empty", "a-character", "half", "all-but-one"])
def test_a_result_cut_short_keeps_only_itself_from_the_merge(add_run, run_script, tmp_path, cut):
    add_run(folder="runs/1", seed=1)
    path = add_run(folder="far/2", seed=2) / "result.json"
    add_run(folder="far/3", seed=3)
    path.write_text(path.read_text()[:cut])
    code, out, err = run_script("collect_results.py", "--runs", "runs", "--out", "mqar", "--from", "far")
    assert code == 3
    assert out.splitlines() == ["runs found: 2", "mqar/runs.csv", "mqar/curves.csv", "mqar/provenance.json"]
    (line,) = err.splitlines()
    assert line.startswith(f"error: left out: {path.relative_to(tmp_path)}: got ")
    assert sorted(read_runs_csv(tmp_path / "mqar" / "runs.csv")["seed"].unique()) == [1, 3]


def test_a_run_whose_result_was_cut_later_stays_in_the_csv(add_run, tmp_path):
    for seed in (1, 2):
        add_run(folder=f"a/{seed}", seed=seed)
    gather(tmp_path, "a")
    before = contents(tmp_path)
    path = tmp_path / "a/2/result.json"
    path.write_bytes(path.read_bytes()[:100])
    collected = gather(tmp_path, "a")
    assert len(collected.unreadable) == 1
    assert contents(tmp_path) == before


def test_the_copy_of_another_machine_stands_in_for_a_cut_result(add_run, tmp_path):
    add_run(folder="a/1")
    (tmp_path / "a/1/result.json").write_text("{")
    add_run(folder="b/1")
    collected = gather(tmp_path, "a", "b")
    assert statuses(collected) == {1: "finished"}
    assert len(collected.unreadable) == 1


def test_only_cut_results_are_an_error_that_names_one(add_run, tmp_path):
    for seed in (1, 2, 3):
        (add_run(folder=f"a/{seed}", seed=seed) / "result.json").write_text("{")
    with pytest.raises(ResultError, match=r"a/1/result\.json: got .* not JSON .*; and 2 more, no run could be read"):
        gather(tmp_path, "a")
    assert not (tmp_path / "mqar").exists()


@pytest.mark.parametrize("damage", ["a-row-short", "cut", "gone"])
def test_curves_that_are_damaged_cost_no_result(add_run, tmp_path, damage):
    folder = add_run(folder="a/1")
    edit(folder, "metrics", "history_rows", value=31)
    gather(tmp_path, "a")
    history = folder / "history.csv"
    lines = history.read_text().splitlines(keepends=True)
    assert len(lines) == 32
    if damage == "gone":
        history.unlink()
    else:
        history.write_text("".join(lines)[:-3] if damage == "cut" else "".join(lines[:-1]))
    before = contents(tmp_path)
    collected = gather(tmp_path, "a")
    # The older curve is of the same result.
    assert contents(tmp_path) == before
    assert (len(collected.unreadable), len(collected.no_history)) == ((0, 1) if damage == "gone" else (1, 0))
    if damage == "a-row-short":
        assert "history.csv: got 30 whole rows, expected the 31 that its result counts" in collected.unreadable[0]
    # Without an older one the result stands alone.
    shutil.rmtree(tmp_path / "mqar")
    assert len(gather(tmp_path, "a").curves) == 0
    assert len(read_runs_csv(tmp_path / "mqar" / "runs.csv")) == 3
    # The copy of another machine has it.
    edit(add_run(folder="b/1"), "metrics", "history_rows", value=31)
    both = gather(tmp_path, "a", "b")
    assert (len(both.curves), both.unreadable, both.no_history) == (31, [], [])


def test_curves_of_an_older_other_result_do_not_stay(add_run, tmp_path):
    add_run(folder="a/1")
    gather(tmp_path, "a")
    add_run(folder="b/1", validation=[0.9, 0.7], steps=None)
    assert len(gather(tmp_path, "b").curves) == 0


def test_interrupted_directories_are_counted_and_left_out(add_run, tmp_path):
    add_run(folder="a/1", seed=1)
    for name in ("history.csv", "config.json"):
        folder = tmp_path / "b" / f"with-{name}"
        folder.mkdir(parents=True)
        (folder / name).write_text("step,sta")
    # A result that is being written lies beside its place.
    (tmp_path / "b" / "with-config.json" / ".result.json.x7").write_text('{"format": 1, ')
    collected = gather(tmp_path, "a", "b")
    assert (collected.num_found, len(collected.not_ended), collected.unreadable) == (1, 2, [])
    assert "directories without result.json, left out: 2" in collected.report()


def test_a_result_that_goes_while_it_is_read_has_not_ended(add_run, tmp_path, monkeypatch):
    add_run(folder="a/1", seed=1)
    going = add_run(folder="a/2", seed=2)

    def find(root):
        found = find_run_dirs(root)
        (going / "result.json").unlink()
        return found

    monkeypatch.setattr(run_directories, "find_run_dirs", find)
    collected = gather(tmp_path, "a")
    assert (collected.num_found, collected.not_ended, collected.unreadable) == (1, [going], [])


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_folder_without_runs_is_named(add_run, run_script, tmp_path, kind):
    add_run(folder="runs/1")
    (tmp_path / "far").mkdir()
    add_run(folder="far/1")
    if kind == "empty":
        (tmp_path / "wrong" / "notes").mkdir(parents=True)
    if kind == "file":
        (tmp_path / "wrong").write_text("a tarball, say")
    code, _, err = run_script("collect_results.py", "--runs", "runs", "--out", "mqar", "--from", "far", "wrong")
    reason = {
        "missing": "no such directory, expected a directory with run directories",
        "empty": "no run found below it, expected directories with a result.json",
        "file": "is a file, expected a directory with run directories",
    }[kind]
    assert (code, err) == (1, f"error: wrong: {reason}\n")
    assert not (tmp_path / "mqar").exists()


@pytest.mark.parametrize("own", ["none", "empty", "some"])
def test_own_runs_are_not_needed_beside_those_of_others(add_run, run_script, tmp_path, own):
    add_run(folder="far/1", seed=1)
    add_run(folder="farther/2", seed=2)
    if own == "empty":
        (tmp_path / "results" / "runs").mkdir(parents=True)
    if own == "some":
        add_run(folder="results/runs/3", seed=3)
    # The option may be given twice.
    code, _, err = run_script("collect_results.py", "--out", "mqar", "--from", "far", "--from", "farther")
    assert (code, err) == (0, "")
    seeds = sorted(read_runs_csv(tmp_path / "mqar" / "runs.csv")["seed"].unique())
    assert seeds == ([1, 2, 3] if own == "some" else [1, 2])


def test_a_directory_counts_once_however_often_it_is_given(add_run, tmp_path):
    add_run(folder="a/runs/1", seed=1)
    (tmp_path / "a" / "runs" / "2").mkdir()
    (tmp_path / "a" / "runs" / "2" / "history.csv").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    collected = gather(tmp_path, "a", "a", "a/runs", "a/../a", "link")
    assert (collected.num_found, collected.num_duplicates, len(collected.not_ended)) == (1, 0, 1)


def test_trees_of_any_depth_and_links_are_merged(add_run, tmp_path):
    add_run(folder="packed/home/someone/palimpsa/results/runs/x", seed=1)
    with tarfile.open(tmp_path / "results.tar", "w") as tar:
        tar.add(tmp_path / "packed", arcname="packed")
    with tarfile.open(tmp_path / "results.tar") as tar:
        tar.extractall(tmp_path / "far", filter="data")
    # A run directory itself, and a folder whose runs lie on another disk.
    single = add_run(folder="single", seed=2)
    add_run(folder="disk/y", seed=3)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "runs").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "linked" / "loop").symlink_to(tmp_path / "linked", target_is_directory=True)
    collected = gather(tmp_path, "far", single.name, "linked")
    assert statuses(collected) == {1: "finished", 2: "finished", 3: "finished"}
    assert collected.num_duplicates == 0


def test_merging_step_by_step_gives_the_rows_of_merging_at_once(add_run, tmp_path):
    for seed in (1, 2):
        add_run(folder=f"a/{seed}", seed=seed)
    for seed in (2, 3):
        add_run(folder=f"b/{seed}", seed=seed)
    add_run(folder="c/1", seed=1, status="failed", validation=[], lengths=[], steps=None)
    gather(tmp_path, "a", "b", "c")
    at_once = contents(tmp_path)
    shutil.rmtree(tmp_path / "mqar")
    for root in ("c", "b", "a"):
        gather(tmp_path, root)
    assert contents(tmp_path) == at_once


def test_a_full_disk_leaves_all_three_files_as_they_were(add_run, tmp_path):
    for seed in range(1, 4):
        add_run(folder=f"a/{seed}", seed=seed)
    gather(tmp_path, "a")
    before = contents(tmp_path)
    add_run(folder="a/4", seed=4)
    collected = collect([tmp_path / "a"], tmp_path / "mqar", full_curves=True)
    # Room for runs.csv, but not for curves.csv.
    sizes = {name: len(content) for name, content in before.items()}
    assert 2 * sizes["runs.csv"] < sizes["curves.csv"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * sizes["runs.csv"], old[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_collected(collected, tmp_path / "mqar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert contents(tmp_path) == before
    write_collected(collected, tmp_path / "mqar")
    assert len(read_runs_csv(tmp_path / "mqar" / "runs.csv")) == 12


def kill_at_replacement(number: int) -> Callable[..., None]:
    """An os.replace that kills this process instead of moving the file of that number, from 1."""
    replace, calls = os.replace, []

    def replace_or_die(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    return replace_or_die


def test_killed_while_it_writes_collecting_leaves_files_that_the_next_one_completes(add_run, tmp_path, monkeypatch):
    for seed in (1, 2):
        add_run(folder=f"a/{seed}", seed=seed)
    gather(tmp_path, "a")
    whole = contents(tmp_path)
    for number in (1, 2, 3):
        shutil.rmtree(tmp_path / "mqar")
        gather(tmp_path, "a/1")
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(os, "replace", kill_at_replacement(number))
            try:
                gather(tmp_path, "a")
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        for path in (tmp_path / "mqar").glob("*.csv"):
            assert path.read_bytes().endswith(b"\n")
        gather(tmp_path, "a")
        found = {name: content for name, content in contents(tmp_path).items() if not name.endswith(".tmp")}
        assert found == whole


@pytest.mark.parametrize("name", ["runs.csv", "curves.csv"])
def test_an_older_csv_that_was_cut_is_named(add_run, tmp_path, name):
    add_run(folder="a/1")
    gather(tmp_path, "a")
    path = tmp_path / "mqar" / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ResultError, match=rf"{name}: row \d+ has no line end, expected one; was the file cut short"):
        gather(tmp_path, "a")


def test_odd_files_are_left_out_alone(add_run, run_script, tmp_path):
    """One of them used to end the collection of all others with a traceback."""
    odd = [add_run(folder=f"runs/{name}", seed=seed) for seed, name in enumerate(("deep", "long", "pipe", "step"), 2)]
    (odd[0] / "result.json").write_text("[" * 200_000)
    edit(odd[1], "run", "seed", value=2**70)
    (odd[2] / "result.json").unlink()
    os.mkfifo(odd[2] / "result.json")
    history = (odd[3] / "history.csv").read_text()
    (odd[3] / "history.csv").write_text(f"{history}{2**70}{',' * history.splitlines()[0].count(',')}\n")
    add_run(folder="runs/whole", seed=1)
    code, _, err = run_script("collect_results.py", "--runs", "runs", "--out", "mqar")
    assert code == 3
    lines = err.splitlines()
    assert [line.split(": ")[2] for line in lines] == [
        "runs/deep/result.json",
        "runs/long/result.json",
        "runs/pipe/result.json",
        "runs/step/history.csv",
    ]
    assert sorted(read_runs_csv(tmp_path / "mqar" / "runs.csv")["seed"].unique()) == [1, 5]
