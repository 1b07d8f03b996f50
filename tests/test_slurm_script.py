"""scripts/slurm/pretrain.sbatch, with programs that stand in for Slurm's; sweeps/test_slurm.py has a real one."""

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

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/slurm/pretrain.sbatch"
SMALL = (
    "task=commonsense",
    "model=lm/palimpsa_d_tiny",
    "model.d_model=32",
    "model.num_layers=1",
    "model.channel_width=32",
    "task.context=32",
    "task.tokens_per_step=128",
    "task.num_steps=150",
    "task.validation_every=50",
    "task.validation_tokens=256",
    "trainer.log_every=10",
    "trainer.probe_every=50",
    "trainer.checkpoint_every=20",
    "trainer.progress_bar=false",
    "logger=csv",
)
# srun runs its command here, once a node, and hands signals on, as Slurm's does; scontrol writes down what it is asked.
SRUN = """\
#!/bin/bash
while [[ $1 == -* ]]; do shift; done
told= tasks= worst=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do "$@" & tasks="$tasks $!"; done
trap 'told=1; kill -USR1 $tasks' USR1
for task in $tasks; do
  while wait $task; status=$?; [ -n "$told" ]; do told=; done
  [ $status -eq 0 ] || worst=$status
done
exit $worst
"""
SCONTROL = """\
#!/bin/bash
echo "$@" >> "$SCONTROL_LOG"
"""


@pytest.fixture
def submit(tmp_path):
    """Starts the script as a job of two processes: `submit("task.num_steps=3", nodes=2)`."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    started = []

    def start(*arguments: str, nodes: int, restarts: int = 0) -> subprocess.Popen:
        variables = {
            **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": str(nodes)},
            **{"SLURM_RESTART_COUNT": str(restarts), "NUM_PROCESSES": str(2 // nodes), "PYTHON": sys.executable},
            **{"SCONTROL_LOG": str(tmp_path / "scontrol.log"), "PATH": f"{programs}:{os.environ['PATH']}"},
            **{"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        }
        job = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(job)
        return job

    yield start
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def requests(tmp_path: Path) -> list[str]:
    log = tmp_path / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def test_bash_reads_it_and_slurm_its_options():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    options = re.findall(r"^#SBATCH --(.*)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"requeue", "signal=B:USR1@300", "ntasks-per-node=1", "nodes=1"} <= set(options)


def test_a_job_that_is_told_to_stop_is_requeued_and_ends_as_if_it_was_not(start_script, submit, tmp_path):
    made = start_script("prepare_text.py", "source=sample", "tokenizer=bytes", f"directory={tmp_path}/data")
    assert made.wait() == 0, made.err
    data = f"task.data={tmp_path}/data"
    alone = start_script("train.py", *SMALL, data, f"results_dir={tmp_path}/alone")
    assert alone.wait() == 0, alone.err
    (result,) = (tmp_path / "alone").rglob("result.json")
    directory = RunDirectory(tmp_path / "slurm" / result.parent.relative_to(tmp_path / "alone"))
    arguments = (*SMALL, data, f"results_dir={tmp_path}/slurm", "trainer.strategy=fsdp")
    job = submit(*arguments, nodes=2)
    deadline = time.monotonic() + 300
    while not directory.has_checkpoint():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 1, output
    (step,) = set(re.findall(r"stopped by SIGUSR1 after step (\d+)", output))
    assert directory.checkpoint_step() == int(step)
    assert requests(tmp_path) == ["requeue 4711"]
    assert not directory.result_file.exists()
    # On other nodes.
    job = submit(*arguments, nodes=1, restarts=1)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert requests(tmp_path) == ["requeue 4711"]
    # One of the processes shows what came of it.
    assert output.count("loss curve: ") == 1
    curves = [pd.read_csv(path / "history.csv") for path in (result.parent, directory.path)]
    expected, found = (one.drop(columns=["tokens_per_s", "data_wait"]) for one in curves)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)


def test_a_job_that_fails_of_itself_is_not_requeued(submit, tmp_path):
    job = submit(*SMALL, "task.data=absent", f"results_dir={tmp_path}", nodes=1)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 1
    assert "task.data: got 'absent', expected a folder" in output
    assert requests(tmp_path) == []


@pytest.mark.parametrize("page", ["docs/launchers.md", "scripts/slurm/pretrain.sbatch"])
def test_the_commands_that_are_shown_are_ones(page, compose_config):
    (command,) = re.findall(r"^#? *(sbatch (?:.*\\\n)*.*)", (ROOT / page).read_text(), re.MULTILINE)
    options, _, overrides = re.sub(r"\\\n#?", " ", command).partition(" scripts/slurm/pretrain.sbatch ")
    assert re.fullmatch(r"sbatch( --[a-z-]+=[\w:]+)+", options)
    config = compose_config("task=commonsense", *overrides.split())
    assert (config.trainer.accelerator, config.trainer.strategy) == ("gpu", "fsdp")
    # A graph is one GPU's.
    assert not config.trainer.cuda_graphs
