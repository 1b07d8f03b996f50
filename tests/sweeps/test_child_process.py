"""Runs of a process whose GPU is lost take a process each, and sweeps go on. No GPU is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.sweeps import child_process as own_process
from palimpsa.sweeps.child_process import run_in_own_process
from palimpsa.training.run import run

ROOT = Path(__file__).resolve().parents[2]
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
# Runs in a process of its own what arguments ask for.
PARENT = """
import sys
from palimpsa.sweeps.command import preflight
from palimpsa.sweeps.child_process import run_in_own_process
run_in_own_process(preflight(sys.argv[1:], multirun=False)[0])
"""
# A command line whose run of seed 2 ends with an error that loses the GPU.
FAULTY = """
from palimpsa.training import gpus as devices
from palimpsa.training import run as training
from palimpsa.sweeps.command import train_main

train = training.train

def fault(cfg, *others):
    if cfg.seed != 2:
        return train(cfg, *others)
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    devices.record_gpu_failure(error)
    raise error

training.train = fault
train_main()
"""


def stages(directory: str) -> list:
    return json.loads(RunDirectory(directory).result_file.read_text())["stages"]


def test_the_result_is_that_of_a_run_in_this_process(tiny_config, tmp_path):
    cfg = tiny_config()
    run_in_own_process(cfg)
    other = tiny_config(f"results_dir={tmp_path}/other")
    assert stages(cfg.run_dir) == run(other)["stages"]


def test_errors_are_those_of_the_run(tiny_config):
    cfg = tiny_config()
    directory = RunDirectory(cfg.run_dir)
    directory.checkpoint_file.parent.mkdir(parents=True)
    directory.checkpoint_file.write_bytes(b"half a checkpoint")
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt: got 17 bytes"):
        run_in_own_process(cfg)


def test_an_error_that_cannot_be_sent_is_told():
    class Local(Exception):
        pass

    error = own_process.pickle.loads(own_process._pickled(Local("a reason")))
    assert isinstance(error, RuntimeError)
    assert str(error) == "Local: a reason"


@pytest.mark.parametrize(("end", "code"), [("os._exit(9)", 9), ("os.kill(os.getpid(), 9)", -9)])
def test_a_process_that_ends_without_a_word_is_an_error(tiny_config, monkeypatch, end, code):
    monkeypatch.setattr(own_process, "PROGRAM", f"import os; {end}")
    with pytest.raises(ChildProcessError, match=f"exit code {code}$"):
        run_in_own_process(tiny_config())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_parent(tiny_overrides, tmp_path, how):
    endless = ["task.stages=[{seq_len: 8, num_pairs: 2, max_steps: 1000000}]", "task.stop_accuracy=2"]
    overrides = [*tiny_overrides, *endless, "trainer.checkpoint_every=5", f"results_dir={tmp_path}"]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *overrides], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while not list(tmp_path.glob("runs/**/last.ckpt")):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.send_signal(how)
        parent.wait(20)
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        parent.kill()


@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["basic", "joblib"]
)
def test_a_sweep_in_processes_whose_gpu_is_lost_finishes(tiny_overrides, tmp_path, launcher):
    (tmp_path / "sitecustomize.py").write_text("from palimpsa import devices\ndevices._unusable = True\n")
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    sweep = ["-m", *tiny_overrides, f"results_dir={tmp_path}", "model=gla", "seed=1,2", *launcher]
    done = subprocess.run(
        [sys.executable, "scripts/train.py", *sweep],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": finished, ") == 2
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 2


def test_a_fault_costs_a_sweep_one_run_however_often_it_comes(tiny_overrides, tmp_path):
    sweep = ["-m", *tiny_overrides, f"results_dir={tmp_path}", "model=gla", "seed=1,2,3,4"]
    done = subprocess.run([sys.executable, "-c", FAULTY, *sweep], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "1 of 4 runs failed" in done.stderr
    assert done.stdout.count(": finished, ") == 3
    again = subprocess.run(
        [sys.executable, "scripts/train.py", *sweep], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": finished, ") == 1
