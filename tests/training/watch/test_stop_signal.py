"""A signal to one of a run's processes: all write a checkpoint of the same step and end, and nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.runs.directory import RunDirectory
from palimpsa.training.checkpoint import read_checkpoint
from palimpsa.training.run import run

ROOT = Path(__file__).resolve().parents[3]
# A run of some seconds.
LONG = (
    "model=transformer",
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:400}]",
    "task.stop_accuracy=2",
    "task.validation_every=150",
    "trainer.log_every=10",
    "trainer.probe_every=150",
    "trainer.checkpoint_every=50",
)


def torchrun(*arguments: str) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, str(ROOT / "scripts/train.py"), *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(launcher: subprocess.Popen) -> list[int]:
    """Its processes, by their rank."""
    ranks = {}
    for pid in map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()):
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        ranks.update({int(line[5:]): pid for line in environment if line.startswith("RANK=")})
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.parametrize(
    ("strategy", "number", "rank", "accumulate"),
    [("ddp", signal.SIGUSR1, 1, 2), ("fsdp", signal.SIGTERM, 0, 1)],
    ids=["ddp-USR1-rank1", "fsdp-TERM-rank0"],
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    tiny_overrides, tiny_config, tmp_path, strategy, number, rank, accumulate
):
    alone = tiny_config(*LONG)
    run(alone)
    options = (f"trainer.strategy={strategy}", f"trainer.accumulate={accumulate}")
    command = (*tiny_overrides, *LONG, f"results_dir={tmp_path}/stopped", *options)
    directory = RunDirectory(tmp_path / "stopped" / Path(alone.run_dir).relative_to(tmp_path))
    launcher = torchrun(*command)
    deadline = time.monotonic() + 120
    while not directory.has_checkpoint():
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(workers(launcher)[rank], number)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode == 1, told
    lines = re.findall(r"stopped by (\w+) after step (\d+), with a checkpoint; the same command goes on where", told)
    assert len(lines) == 2, told
    assert len(set(lines)) == 1
    name, step = lines[0][0], int(lines[0][1])
    assert name == number.name
    assert 50 <= step < 400
    assert not directory.result_file.exists()
    content = read_checkpoint(directory.checkpoints.newest_first()[0], [])
    assert content["global_step"] == step
    # And the same command goes on.
    launcher = torchrun(*command)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, told
    curves = [pd.read_csv(path / "history.csv") for path in (Path(alone.run_dir), directory.path)]
    expected, found = (one.drop(columns="tokens_per_s") for one in curves)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-7)
    # Instead of anew: no two runs measure the same throughput.
    before = curves[1].set_index("step")["tokens_per_s"].dropna()
    rows = content["callbacks"]["History"]["rows"]
    kept = {row["step"]: row["tokens_per_s"] for row in rows if "tokens_per_s" in row}
    assert kept
    assert before.loc[list(kept)].tolist() == list(kept.values())
