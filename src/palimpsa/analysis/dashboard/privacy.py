"""What a page does not tell: secrets, and who sat at which machine."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palimpsa.config.private import is_secret

SECRET = "[secret]"
# A name that ends so holds a secret; ids of special tokens are none.
_SECRET_NAME = re.compile(
    r"(?<![A-Za-z])(?:(?:api|access|private|secret|wandb|ssh)[_-]?keys?|secrets?|password|passwd|passphrase"
    r"|credentials?|(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!prefix_)token)$",
    re.IGNORECASE,
)
# As environments call variables.
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_[A-Z0-9_]+")
# A name, which JSON has in quotes, and its sign, of an option a space. Not its value, which may be another assignment.
_ASSIGNMENT = re.compile(r"(?P<name>[\w.\-]+)(?P<sign>['\"]?\s*[=:]\s*|\s+)")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s,;&]+")
# As their issuers shape them: Hugging Face, OpenAI, GitHub, GitLab, AWS, W&B; headers, and passwords in addresses.
_SHAPES = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_\-]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    re.compile(r"\bglpat-[A-Za-z0-9_\-]{16,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\bwandb_v\d_\w{16,}"),
    re.compile(r"(?<=Bearer )\S+"),
    re.compile(r"(?<=Authorization: Basic )\S+"),
    re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)"),
)
_HOMES = re.compile(r"(?:/home|/Users)/[^/\s'\"]+|/ro{2}t(?=[/\s'\"]|$)")
_HOLDER = re.compile(r"process (\d+) on [^\s),;]+")
_ADDRESS = re.compile(r"[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+")
# Names that tell nobody apart, words of every page, and ones so short that words of other meanings hold them.
_COMMON_NAMES = {
    *("root", "user", "users", "localhost", "admin", "runner", "ubuntu", "debian", "container", "docker"),
    *("laptop", "h200", "gpu", "cpu", "node", "server", "dev", "test", "train", "palimpsa", "mqar"),
}
_SHORTEST_NAME = 3
_SHORTEST_SECRET = 8


class Scrubber:
    """Takes out of texts what no page may hold.

    Args:
        names: of users and machines.
        secrets: values that are known to be secret.
        home: the folder of whoever is logged in.
    """

    def __init__(self, names: Iterable[str] = (), secrets: Iterable[str] = (), home: str | None = None) -> None:
        self._names: set[str] = set()
        self._secrets = sorted({one for one in secrets if len(one) >= _SHORTEST_SECRET}, key=len, reverse=True)
        self._home = home if home and len(home) > 1 else None
        self._name_pattern: re.Pattern[str] | None = None
        self.add_names(names)

    @classmethod
    def of_this_machine(cls, environment: Mapping[str, str] | None = None) -> Scrubber:
        """Knows the user and host names and the secrets that the environment holds."""
        environment = os.environ if environment is None else environment
        names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
        with contextlib.suppress(OSError, KeyError):
            names.add(getpass.getuser())
        names |= {environment.get(name, "") for name in ("USER", "LOGNAME", "HOSTNAME", "WANDB_ENTITY")}
        home = None
        with contextlib.suppress(RuntimeError):
            home = str(Path.home())
        return cls(names, [value for name, value in environment.items() if is_secret(name)], home)

    def add_names(self, names: Iterable[str]) -> None:
        """More names of users and machines, that a file turned out to hold."""
        new = {name for name in names if len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON_NAMES}
        if new - self._names:
            self._names |= new
            words = "|".join(re.escape(name) for name in sorted(self._names, key=len, reverse=True))
            self._name_pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])")

    def text(self, text: str) -> str:
        """A text without secrets, user and host names and home folders.

        >>> Scrubber(["alice"]).text("WANDB_API_KEY=0123 in /home/alice/runs, process 7 on gpu-12, by alice")
        'WANDB_API_KEY=[secret] in ~/runs, process 7, by [name]'
        """
        text = self._without_secrets(text)
        if self._home:
            text = re.sub(rf"{re.escape(self._home)}(?![\w.-])", "~", text)
        text = _HOLDER.sub(r"process \1", _HOMES.sub("~", text))
        text = _ADDRESS.sub("[address]", text)
        return self._name_pattern.sub("[name]", text) if self._name_pattern else text

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, SECRET)
        text = _without_assigned(text)
        for shape in _SHAPES:
            text = shape.sub(SECRET, text)
        return text

    def data(self, value: Any) -> Any:
        """The same of every text in lists and dictionaries; of their keys, by which the page finds things, no name."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._without_secrets(str(key)): self.data(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        return value

    def config(self, flat: Mapping[str, Any]) -> list[list[str]]:
        """A flat config as pairs of texts, without the values of keys that are called as secrets are."""
        hidden = {key for key in flat if is_secret_name(key) and flat[key] is not None}
        # Whose account it is.
        shown = {key: value for key, value in flat.items() if key != "logger.entity"}
        return [[key, SECRET if key in hidden else "null" if v is None else str(v)] for key, v in shown.items()]


def is_secret_name(name: str) -> bool:
    """Whether a key of a config, or what a text assigns to, is a secret by its name: not every token is one there.

    >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "hf.token", "num_tokens", "prefix_token", "monkey")]
    [True, True, False, False, False]
    """
    return _SECRET_NAME.search(name) is not None or (_VARIABLE.fullmatch(name) is not None and is_secret(name))


def _without_assigned(text: str) -> str:
    """Text without what it assigns to names of secrets: NAME=VALUE, "name": "value", --name value."""
    parts, place = [], 0
    for found in _ASSIGNMENT.finditer(text):
        gives = found["name"].startswith("--") or not found["sign"].isspace()
        value = _VALUE.match(text, found.end()) if gives and is_secret_name(found["name"]) else None
        if value is not None and found.start() >= place:
            parts += [text[place : found.end()], SECRET]
            place = value.end()
    return "".join([*parts, text[place:]])
