"""Logging: offline without an account, never waiting for a network, and without wandb where it is not wanted."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsa.analysis.dashboard.wandb_files import read_offline_file
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import typed
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.training import loggers
from palimpsa.training.run import run

ROOT = Path(__file__).resolve().parents[2]


def wandb_metrics(directory: Path) -> set[str]:
    """Names of all metrics in an offline run's file, read with W&B's own reader of its records."""
    from wandb.proto import wandb_internal_pb2

    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    # Its service may still be writing when the run has ended.
    deadline = time.monotonic() + 300
    while not read_offline_file(file).ended:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    names: set[str] = set()
    for record_bytes in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(record_bytes)
        names.update(item.key or "/".join(item.nested_key) for item in record.history.item)
    return names


def records(content: bytes):
    """Records of a .wandb file: LevelDB's log format, 32 KiB blocks, after a 7-byte file header."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield parts
            parts = b""


def test_wandb_records_offline_what_the_dashboards_need(tiny_config, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cfg = tiny_config("logger=wandb")
    run(cfg)
    logged = wandb_metrics(Path(cfg.run_dir))
    for name in ("loss", "learning_rate", "tokens_per_s", "validation_accuracy", "validation_accuracy/age0"):
        assert name in logged
    for quantity in ("window", "metaplasticity"):
        assert {f"{quantity}_mean", f"{quantity}/layer0/head0", f"{quantity}/layer1/head1"} <= logged
    assert "test_accuracy/L16" in logged


def test_csv_logger_works_without_wandb(tiny_overrides, tmp_path):
    """In a process of its own, in which importing wandb fails."""
    program = (
        "import sys; sys.modules['wandb'] = None; sys.argv[0] = 'train.py'; "
        "from palimpsa.sweeps.command import train_main; train_main()"
    )
    command = [sys.executable, "-c", program, *tiny_overrides, "logger=csv", f"results_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (history,) = tmp_path.rglob("history.csv")
    assert "metaplasticity_mean" in history.read_text()


def test_wandb_that_is_not_installed_is_a_clear_error(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logger: wandb is not installed.*logger=csv"):
        run(tiny_config("logger=wandb"))


# What W&B refused in every run, after the checks: the overrides, the environment, and what is told now.
REFUSED = {
    "a slash in the project": (["logger.project=a/b"], {}, r"logger\.project: got 'a/b', .*cannot contain"),
    "a long project": ([f"logger.project={'p' * 129}"], {}, r"logger\.project: got 'p+', .*exceeded 128"),
    "no project": (["logger.project=''"], {}, r"logger\.project: got '', expected 1 to 128 characters"),
    "a slash in the entity": (["logger.entity=a/b"], {}, r"logger\.entity: got 'a/b', expected a name without /"),
    "a long group": ([f"logger.group={'g' * 129}"], {}, r"logger\.group: got 'g+', expected 1 to 128 characters"),
    "a long label of ours": ([f"variant=_{'v' * 105}"], {}, r"the name of a run \(model\.name, variant\): got 'pal"),
    "no file": ([], {"WANDB_SWEEP_PARAM_PATH": "/no/such"}, "WANDB_SWEEP_PARAM_PATH: got '/no/such', expected a file"),
    "no address": ([], {"WANDB_BASE_URL": "nonsense"}, r"WANDB_BASE_URL: got 'nonsense', .*valid URL"),
    "the page, not the server": (
        [],
        {"WANDB_BASE_URL": "https://wandb.ai"},
        r"WANDB_BASE_URL: got .*not a valid server",
    ),
    "a mode": (["logger.mode=offline"], {"WANDB_MODE": "bad"}, r"WANDB_MODE: got 'bad', .*'offline'"),
    "a project from outside": ([], {"WANDB_PROJECT": "a:b"}, r"WANDB_PROJECT: got 'a:b'"),
    "an entity from outside": ([], {"WANDB_ENTITY": "a/b"}, r"logger\.entity: got 'a/b'"),
    "a number": ([], {"WANDB_INIT_TIMEOUT": "soon"}, r"WANDB_INIT_TIMEOUT: got 'soon', .*valid number"),
    "a secret": ([], {"WANDB_API_KEY": " secret"}, r"WANDB_API_KEY: got a secret, .*whitespace"),
    "what does not go together": ([], {"WANDB_RESUME_FROM": "x?_step=3"}, r"logger: got .*mutually exclusive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_wandb_would_refuse_is_one_line_before_the_first_run(case, tmp_path, monkeypatch):
    overrides, environment, told = REFUSED[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["logger=wandb", *overrides, f"results_dir={tmp_path}/results"]
    for multirun in (False, True):
        with pytest.raises(ConfigError, match=f"^{told}") as caught:
            plan_command_line(words, multirun=multirun)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()
    # Without W&B none of it matters.
    for without in ("logger.name=csv", "logger.mode=disabled"):
        plan_command_line([*words, without], multirun=False)


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_an_online_run_without_network_is_recorded_offline_and_says_so(tiny_config, monkeypatch, capsys, key):
    # An address that takes no connection, as a machine without network would see it.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    started = time.monotonic()
    cfg = tiny_config("logger=wandb", "logger.mode=online")
    assert run(cfg)["status"] == "finished"
    assert time.monotonic() - started < 60
    told = capsys.readouterr().err
    assert "recorded offline instead" in told
    assert ("cannot be reached" if key else "no W&B API key") in told
    assert "loss" in wandb_metrics(Path(cfg.run_dir))


def test_a_server_that_takes_connections_and_never_answers_does_not_hang_a_run(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr(loggers, "INIT_TIMEOUT_S", 2.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        started = time.monotonic()
        assert run(tiny_config("logger=wandb", "logger.mode=online"))["status"] == "finished"
        assert time.monotonic() - started < 60
    assert "recorded offline instead" in capsys.readouterr().err


def test_disabled_wandb_leaves_nothing(tiny_config, tmp_path):
    run(tiny_config("logger=wandb", "logger.mode=disabled"))
    assert not list(tmp_path.rglob("wandb"))


@pytest.mark.parametrize("model", ["palimpsa_d", "palimpsa_m", "mamba2", "gla"])
def test_the_probe_stays_below_three_percent_of_the_time(compose_config, tmp_path, model):
    """The share that every result states, at the laptop's real intervals and sizes: a ratio within one run."""
    cfg = compose_config(
        "logger=csv",
        "trainer.progress_bar=false",
        f"model={model}",
        f"results_dir={tmp_path}",
        "task.stages=[{seq_len:32,num_pairs:8,max_steps:80}]",
    )
    assert 0 < run(typed(cfg))["metrics"]["probe_time_share"] <= 0.03
