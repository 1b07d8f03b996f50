"""Sweeps that are killed, or find the disk full or a file cut short: nothing finished is lost, the rest resumes.

Workers of joblib's start from nothing, as they do for a user, and import for seconds; the sweeps themselves do not.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import hold_lock

SEEDS = (1, 2)
RUNS = Path("runs/mqar_curriculum/laptop/mamba2/lr_0.00464")
SWEEP = (
    "-m",
    "model=mamba2",
    "scale.d_model=16",
    "scale.num_heads=2",
    "scale.head_k_dim=4",
    "scale.head_v_dim=4",
    "task.vocab_size=32",
    "task.tokens_per_step=64",
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:60,in_figure:false},{seq_len:16,num_pairs:4,max_steps:180}]",
    "task.validation_every=30",
    "task.num_validation=8",
    "task.num_test=16",
    "trainer.checkpoint_every=10",
    "trainer.log_every=10",
    "trainer.probe_every=30",
    "logger=csv",
    f"seed={','.join(map(str, SEEDS))}",
)


@pytest.fixture(scope="module")
def start(start_script):
    """Starts the sweep below a folder: `start(tmp_path, "hydra/launcher=joblib")`."""

    def start_sweep(results: Path, *arguments: str, largest_file: int | None = None):
        command = ("train.py", *SWEEP, f"results_dir={results}", *arguments)
        return start_script(*command, largest_file=largest_file, OPENBLAS_NUM_THREADS="1")

    return start_sweep


@pytest.fixture(scope="module")
def sweep(start):
    """Runs the sweep to its end: `code, printed = sweep(tmp_path)`."""

    def run_to_end(*arguments, **options) -> tuple[int, str]:
        started = start(*arguments, **options)
        return started.wait(), started.out + started.err

    return run_to_end


@pytest.fixture(scope="module")
def undisturbed(sweep, tmp_path_factory) -> Path:
    """The results folder of the sweep without any mishap."""
    results = tmp_path_factory.mktemp("undisturbed")
    code, output = sweep(results)
    assert code == 0, output
    return results


def comparable(results: Path):
    """What the runs of two sweeps must share: all but where, when and how fast."""
    found = {}
    for seed in SEEDS:
        result = json.loads((results / RUNS / f"seed_{seed}/result.json").read_text())
        del result["provenance"], result["sha256"]
        for name in ("probe_time_share", "history_sha256"):
            del result["metrics"][name]
        for key in ("results_dir", "run_dir"):
            del result["config"][key]
        history = pd.read_csv(results / RUNS / f"seed_{seed}/history.csv").drop(columns="tokens_per_s")
        found[seed] = result, history.to_csv()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run that holds some of its results."""
    files = [path for name in ("*.json", "*.csv", "*.ckpt") for path in folder.rglob(name)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def at_work(results: Path) -> list[int]:
    """The seeds whose directories are held by a process that has said so by now."""
    holders = {seed: RunDirectory(results / RUNS / f"seed_{seed}").holder() for seed in SEEDS}
    return [seed for seed, holder in holders.items() if holder is not None and holder.startswith("process ")]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_ten_times(start, results: Path, *launcher: str, num_late: int) -> None:
    """Starts the sweep ten times and kills all its processes, `num_late` times while runs train, else earlier."""
    moments = random.Random(num_late)
    for is_late in moments.sample([True] * num_late + [False] * (10 - num_late), 10):
        started = start(results, *launcher)
        if is_late:
            wait_for(lambda: at_work(results))
        time.sleep(moments.uniform(0, 0.35 if is_late else 1.5))
        os.killpg(started.pid, signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL, started.err


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_with_the_results_of_an_undisturbed_one(start, sweep, undisturbed, tmp_path):
    kill_ten_times(start, tmp_path, num_late=6)
    code, output = sweep(tmp_path)
    assert code == 0, output
    assert comparable(tmp_path) == comparable(undisturbed)


def is_alive(group: int) -> bool:
    """Whether a process group has a process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_so_does_one_with_workers_which_outlive_it_and_are_left_alone(start, sweep, undisturbed, tmp_path):
    """Ten times joblib's workers are killed too; the last time they finish their runs, and are named meanwhile."""
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    kill_ten_times(start, tmp_path, *launcher, num_late=1)
    started = start(tmp_path, *launcher)
    group = started.pid
    try:
        wait_for(lambda: at_work(tmp_path))
        # Held still meanwhile, so that they are there to be found.
        os.killpg(group, signal.SIGSTOP)
        os.kill(group, signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
        alive = at_work(tmp_path)
        # By no workers of its own, whose imports would take longer than all else here.
        code, output = sweep(tmp_path)
        assert code == 1, output
        for seed in alive:
            assert f"running: mamba2 lr 0.00464 seed {seed}: process " in output, output
        assert f"{len(alive)} of 2 runs are at work in other processes and were left alone" in output
        os.killpg(group, signal.SIGCONT)
        wait_for(lambda: not at_work(tmp_path))
        # A worker without a sweep has nothing to wait for, and would keep its memory, and a GPU.
        wait_for(lambda: not is_alive(group))
    finally:
        if is_alive(group):
            os.killpg(group, signal.SIGKILL)
    code, output = sweep(tmp_path)
    assert code == 0, output
    assert comparable(tmp_path) == comparable(undisturbed)


def test_a_second_sweep_shows_the_ledger_and_ends(sweep, tmp_path):
    (tmp_path / "runs").mkdir()
    with hold_lock(tmp_path / "runs/.sweep.lock"):
        code, output = sweep(tmp_path)
    assert code == 2
    table, error = output.splitlines()[1:3], output.splitlines()[-1]
    assert table[1].split() == ["mamba2", "0", "0", "0", "2", "2"]
    assert error.startswith(
        f"error: results_dir: {tmp_path}/runs is swept by another process (process {os.getpid()} on "
    )
    assert not list(tmp_path.rglob("config.json"))


def one_finished(undisturbed: Path, results: Path) -> dict[str, bytes]:
    """Copies the first run of the undisturbed sweep; returns its files."""
    shutil.copytree(undisturbed / RUNS / "seed_1", results / RUNS / "seed_1")
    return contents(results / RUNS / "seed_1")


# What a file may grow to, and what then happens: Hydra cannot note the sweep; a checkpoint and the news of its failure
# cannot be written; a checkpoint alone.
LIMITS = {
    3_000: (2, r"error: results_dir: cannot write to .*/runs: File too large"),
    7_000: (1, r"1 of 2 runs failed:\n  failed: mamba2 lr 0.00464 seed 2: OSError: .*File too large"),
    20_000: (1, r"1 of 2 runs failed:\n  failed: mamba2 lr 0.00464 seed 2: OSError: .*File too large"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_full_disk_loses_nothing_that_was_finished(limit, sweep, undisturbed, tmp_path):
    finished = one_finished(undisturbed, tmp_path)
    expected, told = LIMITS[limit]
    code, output = sweep(tmp_path, largest_file=limit)
    assert code == expected, output
    assert re.search(told, output), output
    assert contents(tmp_path / RUNS / "seed_1") == finished
    assert (tmp_path / RUNS / "seed_2/result.json").exists() == (limit == 20_000)
    code, output = sweep(tmp_path)
    assert code == 0, output
    assert contents(tmp_path / RUNS / "seed_1") == finished
    assert comparable(tmp_path) == comparable(undisturbed)


# What is cut short, the exit code, and what is told. A damaged checkpoint shows when its run goes on.
CUT = {
    "result.json": (2, r"error: .*seed_2/result.json: got 40 bytes that are not JSON"),
    "config.json": (2, r"error: .*seed_2/config.json: got 40 bytes that are not JSON"),
    "history.csv": (2, r"error: .*seed_2/history.csv: got 0 whole rows, expected the \d+ that its result counts"),
    "checkpoints/last.ckpt": (0, r"seed 2: finished, .*seed_2/checkpoints/last.ckpt is no readable .* starts anew"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_was_cut_short_is_named_and_costs_no_other_run(name, sweep, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / RUNS / "seed_2"
    if name == "checkpoints/last.ckpt":
        (directory / "result.json").unlink()
    elif name == "config.json":
        # With another run still to do, which must not start.
        shutil.rmtree(tmp_path / RUNS / "seed_1")
    with (directory / name).open("r+") as file:
        file.truncate(40)
    cut, others = (directory / name).read_bytes(), contents(tmp_path / RUNS / "seed_1")
    expected, told = CUT[name]
    code, output = sweep(tmp_path)
    assert code == expected, output
    assert re.search(told, output), output
    assert contents(tmp_path / RUNS / "seed_1") == others
    if name == "checkpoints/last.ckpt":
        assert (directory / f"{name}.damaged").read_bytes() == cut
        assert comparable(tmp_path) == comparable(undisturbed)
        return
    assert (directory / name).read_bytes() == cut
    (directory / name).unlink()
    code, output = sweep(tmp_path)
    assert code == 0, output
    if name == "history.csv":
        assert not (directory / name).exists(), "the result stays, and says how many rows there were"
    else:
        assert comparable(tmp_path) == comparable(undisturbed)
