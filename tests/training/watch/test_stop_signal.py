"""A signal to one of a run's processes: all write a checkpoint of the same step and end, and nothing is lost."""

import os
import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.config.compose import compose_config
from palimpsa.config.schema import typed
from palimpsa.runs.directory import RunDirectory
from palimpsa.training.checkpoint import read_checkpoint
from palimpsa.training.run import run

# A run of some seconds.
LONG = (
    "model=transformer",
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:200}]",
    "task.stop_accuracy=2",
    "task.validation_every=75",
    "trainer.log_every=10",
    "trainer.probe_every=75",
    "trainer.checkpoint_every=50",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_overrides) -> Path:
    """The directory of the run by one process, undisturbed."""
    config = typed(compose_config([*tiny_overrides, *LONG, f"results_dir={tmp_path_factory.mktemp('alone')}"]))
    run(config)
    return Path(config.run_dir)


@pytest.mark.parametrize(
    ("strategy", "number", "rank", "accumulate"),
    [("ddp", signal.SIGUSR1, 1, 2), ("fsdp", signal.SIGTERM, 0, 1)],
    ids=["ddp-USR1-rank1", "fsdp-TERM-rank0"],
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    start_ranks, run_ranks, alone, tiny_overrides, tmp_path, strategy, number, rank, accumulate
):
    options = (f"trainer.strategy={strategy}", f"trainer.accumulate={accumulate}")
    command = (*tiny_overrides, *LONG, f"results_dir={tmp_path}", *options)
    directory = RunDirectory(typed(compose_config(command)).run_dir)
    ranks = start_ranks(2, "train.py", *command)
    deadline = time.monotonic() + 300
    while not directory.has_checkpoint():
        assert [one.poll() for one in ranks] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Not at that checkpoint's step, of which there would be one in any case.
    time.sleep(0.1)
    os.kill(ranks[rank].pid, number)
    assert [one.wait() for one in ranks] == [130, 130]
    told = "".join(one.err for one in ranks)
    lines = re.findall(r"stopped by (\w+) after step (\d+), with a checkpoint; the same command goes on where", told)
    assert len(lines) == 2, told
    assert len(set(lines)) == 1
    name, step = lines[0][0], int(lines[0][1])
    assert name == number.name
    assert 50 <= step < 200
    assert not directory.result_file.exists()
    content = read_checkpoint(directory.checkpoints.newest_first()[0], [])
    assert content["global_step"] == step
    # And the same command goes on.
    run_ranks(2, "train.py", *command)
    curves = [pd.read_csv(path / "history.csv") for path in (alone, directory.path)]
    expected, found = (one.drop(columns="tokens_per_s") for one in curves)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-7)
    # Instead of anew: no two runs measure the same throughput.
    before = curves[1].set_index("step")["tokens_per_s"].dropna()
    rows = content["callbacks"]["History"]["rows"]
    kept = {row["step"]: row["tokens_per_s"] for row in rows if "tokens_per_s" in row}
    assert kept
    assert before.loc[list(kept)].tolist() == list(kept.values())
