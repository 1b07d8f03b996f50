"""What of this process's environment stays here: its secrets, and the name of whoever is logged in."""

import copy
import os
import re
from typing import Any

# Of variables whose value is a secret.
SECRETS = ("KEY", "TOKEN", "PASSWORD", "PASSWD", "SECRET", "CREDENTIAL")
HIDDEN = "[hidden]"
# Keys of a run's config that hold paths; whoever reads them expands ~.
PATH_KEYS = ("results_dir", "run_dir", "task.data", "start.weights")
# Fewer characters are a number or a word that any text may hold.
_LEAST = 8


def is_secret(name: str) -> bool:
    """Whether an environment variable holds a secret, by its name.

    >>> is_secret("WANDB_API_KEY"), is_secret("WANDB_MODE")
    (True, False)
    """
    return any(word in name.upper() for word in SECRETS)


def hide_private(text: str) -> str:
    """Text without the secrets of the environment, and with ~ for the home directory, whose name is its owner's."""
    text = hide_secrets(text)
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home.startswith("/") else text


def hide_secrets(text: str) -> str:
    """Text without the secrets of the environment; paths stay as they are typed."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _LEAST:
            text = text.replace(value, HIDDEN)
    return text


def without_private(value: object) -> object:
    """Plain containers with `hide_private` of each text in them."""
    if isinstance(value, dict):
        return {name: without_private(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_private(item) for item in value]
    return hide_private(value) if isinstance(value, str) else value


def with_short_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A run's plain config as files keep it: its paths with ~ for the home directory, all else as it is."""
    new = copy.deepcopy(config)
    home = os.path.expanduser("~").rstrip("/")
    for key in PATH_KEYS:
        *groups, name = key.split(".")
        group: Any = new
        for part in groups:
            group = group.get(part) or {}
        path = group.get(name)
        if home.startswith("/") and isinstance(path, str) and f"{path}/".startswith(f"{home}/"):
            group[name] = f"~{path[len(home) :]}"
    return new
