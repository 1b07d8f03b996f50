"""No secret, user or host name reaches a page."""

from __future__ import annotations

import json
import socket

import pytest

from palimpsa.analysis.dashboard.privacy import Scrubber, is_secret_name

SENTINELS = {
    "user": "sentineluser",
    "host": "sentinel-host-7",
    "key": "0123456789abcdef0123456789abcdef01234567",
    "hub": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "mail": "sentinel@mail.example.org",
    "other": "othersentinel",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.py WANDB_API_KEY=abc seed=1", "train.py WANDB_API_KEY=[secret] seed=1"),
        ("logger.api_key: 'a b', lr=1", "logger.api_key: [secret], lr=1"),
        # Whatever stands before it, and however it is written.
        ("ConfigError: api_key=abc", "ConfigError: api_key=[secret]"),
        ("https://host.org/?access_token=abc&page=1", "https://host.org/?access_token=[secret]&page=1"),
        ('{"api_key": "a b", "seed": 1}', '{"api_key": [secret], "seed": 1}'),
        ("{'hub': {'password': 'abc'}}", "{'hub': {'password': [secret]}}"),
        ("train.py --password abc --seed 1", "train.py --password [secret] --seed 1"),
        ("the password was wrong", None),
        ("AWS_ACCESS_KEY_ID=abc HF_TOKEN_2=def", "AWS_ACCESS_KEY_ID=[secret] HF_TOKEN_2=[secret]"),
        ("Authorization: Basic YTpi", "Authorization: Basic [secret]"),
        ("task.tokens_per_step=64 prefix_token=2 tokenizer=bytes", None),
        ("sk-abcdefghijklmnopqrstuv", "[secret]"),
        ("https://me:word@host.org/x", "https://[secret]@host.org/x"),
        ("/home/somebody/runs and /Users/somebody/x", "~/runs and ~/x"),
        ("in use by another process (process 12 on node-3)", "in use by another process (process 12)"),
        ("write to a.b@c.de now", "write to [address] now"),
        ("Palimpsa-D, 2K @ 0.5", None),
        ("aa0660c7ee4a178b2edf35d0326dc978fdb5c87b", None),
    ],
)
def test_what_is_taken_out_of_a_text(text, expected):
    assert Scrubber().text(text) == (text if expected is None else expected)


def test_names_of_this_machine_are_known(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box.site.example")
    environment = {"USER": "jane", "MY_TOKEN": "plainsecretvalue", "PATH": "/usr/bin"}
    scrubber = Scrubber.of_this_machine(environment)
    assert scrubber.text("jane at gpu-box.site.example, gpu-box: plainsecretvalue in /usr/bin, janet") == (
        "[name] at [name], [name]: [secret] in /usr/bin, janet"
    )


@pytest.mark.parametrize("name", ["DEPLOY_KEY", "HF_TOKEN_2", "AWS_ACCESS_KEY_ID", "DB_PASSWD", "MY_SECRETS"])
def test_a_secret_of_the_environment_is_one_by_the_rule_of_what_runs_leave(name):
    scrubber = Scrubber.of_this_machine({name: "plainsecretvalue"})
    assert scrubber.text("with plainsecretvalue") == "with [secret]"


def test_a_name_that_is_a_common_word_stays():
    """A container's root must not turn the root mean square into something else."""
    assert Scrubber(["root", "me"]).text("the root mean square of me") == "the root mean square of me"


def test_a_name_is_known_beside_an_underscore_and_within_no_word():
    assert Scrubber(["jane"]).text("jane_runs janet of_jane") == "[name]_runs janet of_[name]"


@pytest.mark.parametrize("name", ["runs", "memory", "laptop", "h200"])
def test_a_machine_that_is_called_as_a_part_of_the_page_breaks_no_page(name, add_run, tmp_path, build):
    add_run()
    built = build(tmp_path, scrubber=Scrubber([name]))
    assert [run["scale"] for run in built.runs] == ["laptop"]
    assert set(built.index) >= {"runs", "memory", "speed"}


def test_only_the_home_itself_is_one():
    scrubber = Scrubber(home="/data/jane")
    assert scrubber.text("/data/jane/x /data/jane_old/x '/data/jane'") == "~/x /data/jane_old/x '~'"


def test_values_of_secret_keys_and_accounts_are_no_config():
    pairs = dict(Scrubber().config({"a.password": "x", "b.token": None, "logger.entity": "me", "seed": 1}))
    assert pairs == {"a.password": "[secret]", "b.token": "null", "seed": "1"}


@pytest.mark.parametrize("name", ["num_tokens", "tokens", "key_expansion", "eos_token", "keyboard", "monkey"])
def test_names_that_only_sound_secret(name):
    assert not is_secret_name(name)


def test_no_sentinel_of_any_source_reaches_the_folder(add_run, tmp_path, build, write_offline_run):
    """In commands, errors, tracebacks, notes, configs, locks, progress files, W&B files and paths."""
    user, host, key = SENTINELS["user"], SENTINELS["host"], SENTINELS["key"]
    everything = f"/home/{user}/x on {host} api_key={key} {SENTINELS['hub']} {SENTINELS['mail']} {SENTINELS['other']}"
    failed = add_run(status="failed", seed=1)
    result = json.loads((failed / "result.json").read_text())
    result |= {"error": f"RuntimeError: {everything}", "traceback": f"File {everything}"}
    result["provenance"] |= {"command": f"train.py {everything}", "notes": [everything], "device": f"cpu of {host}"}
    result["config"]["logger"] = {"entity": user, "api_key": key, "group": everything}
    (failed / "result.json").write_text(json.dumps(result))
    unfinished = add_run(seed=2)
    config = json.loads((unfinished / "result.json").read_text())["config"] | {"results_dir": everything}
    (unfinished / "config.json").write_text(json.dumps(config))
    (unfinished / "result.json").unlink()
    (tmp_path / "runs/.progress").mkdir()
    job = {"name": everything, "status": "running", "step": 1, "total": 2, "note": everything, "written": 1}
    (tmp_path / "runs/.progress/a.json").write_text(json.dumps(job))
    write_offline_run(tmp_path / f"wandb/offline-run-20261130_010203-{user}", "abc", host=host, group=everything)
    # A machine's name that only W&B's file tells.
    write_offline_run(tmp_path / "wandb/offline-run-20261130_010204-x", "abd", host=SENTINELS["other"])
    built = build(tmp_path, scrubber=Scrubber([user, host], [key]))
    assert [run["status"] for run in built.runs] == ["failed", "unfinished"]
    text = built.text()
    assert {name for name, sentinel in SENTINELS.items() if sentinel in text} == set()
    assert "[secret]" in text
    assert "[name]" in text
