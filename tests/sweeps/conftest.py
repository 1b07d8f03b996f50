"""Sweeps in this process, where everything is imported already; processes that know Ctrl-C; one run that all share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from palimpsa.config.compose import compose_config
from palimpsa.config.schema import typed
from palimpsa.sweeps.launchers import LAUNCHER_VARIABLE


@dataclass
class Ended:
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def train(monkeypatch, capfd) -> Callable[..., Ended]:
    """scripts/train.py in this process: `train("-m", "seed=1,2").code`. Workers of a launcher are processes still."""
    from palimpsa.sweeps.command import train_main

    # To be taken back when the test ends.
    for variable in ("HYDRA_FULL_ERROR", LAUNCHER_VARIABLE):
        monkeypatch.setenv(variable, "")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        capfd.readouterr()
        code = 0
        try:
            with warnings.catch_warnings():
                # As palimpsa.sweeps.launchers has it outside of tests.
                warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher")
                train_main()
        except SystemExit as end:
            code = end.code
        finally:
            if "joblib.externals.loky" in sys.modules:
                # They would keep the environment of this sweep.
                sys.modules["joblib.externals.loky"].get_reusable_executor().shutdown(wait=True)
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """subprocess.Popen, with a disposition of SIGINT: `start(command, sigint=signal.SIG_IGN)`, as nohup has it.

    The default one is set too: tests in the background of a shell have SIGINT ignored, and would hand that on.
    """

    def popen(command, *, sigint: signal.Handlers = signal.SIG_DFL, **options) -> subprocess.Popen:
        return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, sigint), **options)

    return popen


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_overrides) -> Path:
    """The directory of a run of model=mamba2 and seed 1 that has finished; to be copied."""
    from palimpsa.training.run import run

    results = tmp_path_factory.mktemp("finished")
    config = typed(compose_config([*tiny_overrides, "model=mamba2", f"results_dir={results}"]))
    run(config)
    return Path(config.run_dir)


# A run of another making: the real one imports for seconds.
STUB = """
import sys, types
stub = types.ModuleType("palimpsa.training.run")
exec({source!r}, stub.__dict__)
sys.modules["palimpsa.training.run"] = stub
"""


@pytest.fixture
def stub_run() -> Callable[[str], str]:
    """A program that replaces `palimpsa.training.run` with a source of its own: `stub_run("def run(config): ...")`."""
    return lambda source: STUB.format(source=source)


@pytest.fixture
def begin_every_process_with(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Has every Python that this test starts run a program first."""

    def write(program: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))

    return write


@pytest.fixture
def finished_stub(finished_run, stub_run) -> str:
    """`stub_run` with a run that leaves behind the results of `finished_run`, and `argv`, its process's."""
    return stub_run(f"""
import json, shutil, sys
from pathlib import Path
from palimpsa.config.schema import plain
from palimpsa.runs.identity import config_hash
from palimpsa.runs.result import checksum

def run(config):
    shutil.copytree({str(finished_run)!r}, config.run_dir, dirs_exist_ok=True)
    directory, own = Path(config.run_dir), plain(config)
    result = json.loads((directory / "result.json").read_text())
    result["run"]["seed"] = config.seed
    result |= {{"config": own, "config_hash": config_hash(own)}}
    (directory / "result.json").write_text(json.dumps(result | {{"sha256": checksum(result)}}))
    (directory / "config.json").write_text(json.dumps(own))
    (directory / "argv").write_text(" ".join(sys.argv))
""")
