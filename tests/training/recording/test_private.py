"""No secret, user or host name reaches what a run leaves: planted ones are looked for in every byte of it."""

import json
import os
import platform
import socket
import time
from pathlib import Path

import pytest

from palimpsa.runs.progress import SweepProgress, read_jobs
from palimpsa.training.run import run

SENTINELS = {
    "WANDB_API_KEY": "SENTINEL" + "0" * 32,
    "HF_TOKEN": "hf_SENTINEL_token",
    "USER": "SENTINEL_user",
    "LOGNAME": "SENTINEL_user",
    "USERNAME": "SENTINEL_user",
    "HOSTNAME": "SENTINEL_host",
    "HOST": "SENTINEL_host",
    "WANDB_HOST": "SENTINEL_host",
    "WANDB_USERNAME": "SENTINEL_user",
    "WANDB_USER_EMAIL": "SENTINEL@mail",
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home directory whose owner, host and secrets are called SENTINEL; the working directory is below it."""
    for name, value in SENTINELS.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "SENTINEL_home"
    (place / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place / "project")
    monkeypatch.setattr(socket, "gethostname", lambda: "SENTINEL_host")
    monkeypatch.setattr(platform, "node", lambda: "SENTINEL_host")
    return place


def names_in(folder: Path) -> dict[str, bytes]:
    """The files below a folder that hold a planted name, with what stands around it."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if b"SENTINEL" in content:
                place = content.index(b"SENTINEL")
                found[str(path.relative_to(folder))] = content[max(place - 60, 0) : place + 60]
    return found


def records(folder: Path) -> list:
    """What W&B's offline file has, by W&B's own classes, once its service has written all of it."""
    (file,) = folder.rglob("run-*.wandb")
    deadline = time.monotonic() + 300
    while True:
        found = _records(file.read_bytes())
        if "exit" in {record.WhichOneof("record_type") for record in found}:
            return found
        assert time.monotonic() < deadline, "W&B's file is not finished"
        time.sleep(0.02)


def _records(content: bytes) -> list:
    """LevelDB's log format, 32 KiB blocks, after a 7-byte file header; up to the first record that is not whole."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    position, parts, found = 7, b"", []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            try:
                record.ParseFromString(parts)
            except DecodeError:
                break
            found.append(record)
            parts = b""
    return found


def test_a_run_with_wandb_names_nobody(home, tiny_config):
    config = tiny_config("logger=wandb", "results_dir=results")
    assert run(config)["status"] == "finished"
    assert Path(config.run_dir).is_relative_to("results")
    found = records(Path("results"))
    assert names_in(home / "project") == {}
    # The machine's own name, which no variable can hide from wandb's service.
    assert [record.run.host for record in found if record.HasField("run")] == [""]
    kinds = {record.WhichOneof("record_type") for record in found}
    assert "history" in kinds
    assert "environment" not in kinds
    files = {path.name for path in Path("results").rglob("*")}
    assert not {"wandb-metadata.json", "requirements.txt"} & files


def test_an_absolute_path_in_a_config_is_recorded_without_its_owner(home, tiny_config):
    config = tiny_config("logger=wandb", f"results_dir={home}/project/results")
    run(config)
    found = records(Path("results"))
    wandb_files = [path for path in Path("results").rglob("wandb") if path.is_dir()]
    assert wandb_files
    # W&B's files, and what the run itself leaves: config.json, result.json, checkpoints.
    assert names_in(home / "project") == {}
    configs = [record.config for record in found if record.HasField("config")]
    stored = {item.key: json.loads(item.value_json) for config in configs for item in config.update}
    recorded = [record.run.config for record in found if record.HasField("run")]
    stored |= {item.key: json.loads(item.value_json) for config in recorded for item in config.update}
    assert stored["results_dir"] == "~/project/results"
    # It is the same run still.
    assert run(config)["status"] == "finished"


def test_a_run_that_fails_tells_why_without_names(home, tiny_config, monkeypatch):
    from palimpsa.training import run as run_module

    def fail(*arguments, **options):
        raise ValueError(f"{home}/project: {os.environ['HF_TOKEN']}")

    monkeypatch.setattr(run_module, "build_model", fail)
    with SweepProgress(1, home / "progress"):
        with pytest.raises(ValueError, match="project"):
            run(tiny_config("logger=csv", "results_dir=results"))
        # A sweep prints it, into a log perhaps.
        (job,) = read_jobs(home / "progress").values()
    assert job["note"] == "ValueError: ~/project: [hidden]"
    (result,) = Path("results").rglob("result.json")
    error = json.loads(result.read_text())["error"]
    assert error == "ValueError: ~/project: [hidden]"
    assert names_in(home / "project") == {}
