"""What is hidden of a text: secrets by their variable's name, and the home directory."""

import pytest

from palimpsa.config.private import hide_private, is_secret, with_short_paths, without_private
from palimpsa.config.process import print_failure


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("SERVICE_API_KEY", "abcdefgh12345")
    monkeypatch.setenv("SHORT_TOKEN", "1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key abcdefgh12345!", "key [hidden]!"),
        ("in /home/someone/code/run.py", "in ~/code/run.py"),
        ("/home/someone", "~"),
        ("'/home/someone'", "'~'"),
        # Another's.
        ("/home/someone_else/x", "/home/someone_else/x"),
        ("/home/someone.old", "/home/someone.old"),
        # A secret of one character is a digit of any number.
        ("step 1", "step 1"),
    ],
)
def test_a_text_is_shown_without_what_is_private(text, shown):
    assert hide_private(text) == shown


def test_a_failure_is_printed_without_secrets_its_paths_as_they_are_typed(capsys):
    print_failure("error: /home/someone/data: refused abcdefgh12345")
    assert capsys.readouterr().err == "error: /home/someone/data: refused [hidden]\n"


def test_containers_keep_their_shape():
    value = {"path": "/home/someone/a", "list": ["/home/someone", 3, None], "pair": (True, 0.5)}
    assert without_private(value) == {"path": "~/a", "list": ["~", 3, None], "pair": [True, 0.5]}


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "hub_password", "CLIENT_SECRET"])
def test_secrets_are_known_by_their_names(name):
    assert is_secret(name)
    assert not is_secret("WANDB_MODE")


def test_a_home_that_is_the_root_of_all_paths_hides_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert hide_private("/data/x") == "/data/x"


def test_a_stored_config_has_its_paths_without_the_owner_of_the_home_directory():
    config = {
        "results_dir": "/home/someone/results",
        "run_dir": "/home/someone_else/x",
        "task": {"name": "/home/someone/no path", "data": "/mnt/home/someone/text"},
        "start": None,
    }
    assert with_short_paths(config) == config | {"results_dir": "~/results"}
    assert config["results_dir"] == "/home/someone/results"
    assert with_short_paths({"task": {"data": "/home/someone"}}) == {"task": {"data": "~"}}
