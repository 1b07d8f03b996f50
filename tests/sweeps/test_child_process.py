"""Runs of a process whose GPU is unusable take a process each, and sweeps go on. No GPU is needed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.sweeps import child_process
from palimpsa.sweeps.child_process import run_in_child_process
from palimpsa.training import gpus
from palimpsa.training import run as training

# Runs in a child process what its arguments ask for.
PARENT = """
import sys
from palimpsa.sweeps import child_process
_, child_process.PROGRAM, config = sys.argv
child_process.run_in_child_process(config)
"""


@pytest.fixture
def program(stub_run):
    """What a child process is started with, `run` being that of a source."""
    return lambda source: stub_run(source) + PROGRAM


PROGRAM = child_process.PROGRAM


def test_errors_are_those_of_the_run_and_its_words_are_not_answers(program, monkeypatch, capfd):
    raising = "from palimpsa.config.errors import RunDirectoryError\ndef run(config): raise RunDirectoryError(config)"
    monkeypatch.setattr(child_process, "PROGRAM", program(raising))
    with pytest.raises(RunDirectoryError, match=r"^last\.ckpt: got 17 bytes$"):
        run_in_child_process("last.ckpt: got 17 bytes")
    monkeypatch.setattr(child_process, "PROGRAM", program("def run(config): print(config, flush=True)"))
    run_in_child_process("words")
    assert capfd.readouterr() == ("", "words\n")


def test_an_error_that_cannot_be_sent_is_told():
    class Local(Exception):
        pass

    error = child_process.pickle.loads(child_process._pickle_error(Local("a reason")))
    assert isinstance(error, RuntimeError)
    assert str(error) == "Local: a reason"


@pytest.mark.parametrize(("end", "code"), [("os._exit(9)", 9), ("os.kill(os.getpid(), 9)", -9)])
def test_a_process_that_ends_without_a_word_is_an_error(monkeypatch, end, code):
    monkeypatch.setattr(child_process, "PROGRAM", f"import os; {end}")
    with pytest.raises(ChildProcessError, match=f"exit code {code}$"):
        run_in_child_process("config")


# What the parent does at Ctrl-C, what it is sent, and what it ends with. As under nohup it lives through Ctrl-C.
ENDS = {
    "killed": (signal.SIG_DFL, [signal.SIGKILL], -signal.SIGKILL),
    "interrupted": (signal.SIG_DFL, [signal.SIGINT], -signal.SIGINT),
    "terminated in the background": (signal.SIG_IGN, [signal.SIGINT, signal.SIGTERM], -signal.SIGTERM),
}


@pytest.mark.parametrize("how", ENDS)
def test_it_ends_with_its_parent(how, program, start, tmp_path):
    sigint, signals, code = ENDS[how]
    endless = "from pathlib import Path\ndef run(config):\n    Path(config).touch()\n    while True: pass"
    command = [sys.executable, "-c", PARENT, program(endless), str(tmp_path / "started")]
    parent = start(command, sigint=sigint, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    try:
        while not (tmp_path / "started").exists():
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        for each in signals:
            parent.send_signal(each)
        assert parent.wait(20) == code
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()


def test_workers_whose_gpu_is_unusable_start_a_process_for_each_run(
    train, finished_stub, begin_every_process_with, tiny_overrides, tmp_path
):
    begin_every_process_with(finished_stub + "from palimpsa.training import gpus\ngpus._unusable = True")
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = train("-m", *tiny_overrides, f"results_dir={tmp_path}", "model=mamba2", "seed=1", *joblib)
    assert done.code == 0, done.err
    (argv,) = tmp_path.glob("runs/**/argv")
    assert argv.read_text() == "-c", "not that of the worker, which has the arguments of the sweep"


def test_a_fault_costs_a_sweep_one_run_and_each_later_one_a_process(
    train, tiny_config, tiny_overrides, tmp_path, monkeypatch
):
    def faulty(config, seed):
        if seed != 2:
            return build_model(config, seed)
        error = RuntimeError("CUDA error: an illegal memory access was encountered")
        gpus.record_gpu_failure(error)
        raise error

    build_model = training.build_model
    sweep = ["-m", *tiny_overrides, f"results_dir={tmp_path}", "model=mamba2", "seed=1,2,3"]
    configs = {seed: tiny_config("model=mamba2", f"seed={seed}") for seed in (1, 2, 3)}
    with monkeypatch.context() as patched:
        patched.setattr(gpus, "_unusable", False)
        patched.setattr(training, "build_model", faulty)
        done = train(*sweep)
    assert done.code == 1
    assert "1 of 3 runs failed:\n  failed: mamba2 lr 0.00464 seed 2: RuntimeError: CUDA error: an illegal" in done.err
    assert done.out.count(": finished, ") == 2
    results = {
        seed: json.loads(RunDirectory(config.run_dir).result_file.read_text()) for seed, config in configs.items()
    }
    assert results[1]["provenance"]["command"].startswith("train.py -m ")
    assert results[3]["provenance"]["command"] == "-c"

    here = training.run(tiny_config("model=mamba2", "seed=3", f"results_dir={tmp_path}/here"))
    assert here["provenance"]["command"].startswith("train.py -m ")
    assert results[3]["stages"] == here["stages"]

    again = train(*sweep)
    assert again.code == 0, again.err
    assert again.out.count(": finished, ") == 1
