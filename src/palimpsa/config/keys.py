"""What is said of a config key where it is declared: its range, whether it changes numbers, its neutral default."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.config.moved import unknown_key

# OmegaConf's mark of a value that has to be given. Written out: figures are drawn where there is no OmegaConf.
MISSING: Any = "???"
# What torch, numpy and Python count with.
MAX_COUNT = 2**63 - 1
# Bytes of a part of a file's name; a whole one has 255 at most.
MAX_NAME = 120
FILE_NAME_TEXT = "a name for files: letters, digits, '_', '-', '+' and '.', the first a letter, a digit or '_'"


def is_file_name(value: Any) -> bool:
    """Whether a value can be a part of a file's name, and lead to no other folder."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.+-]*", value) is not None and len(value.encode()) <= MAX_NAME


@dataclass(frozen=True, kw_only=True)
class KeyRule:
    """What a key may be and what depends on it. Of a group of keys it says the same for all below it.

    Args:
        unit: of its numbers, for readers.
        minimum, above, below, maximum: its range; a key with any of them is finite.
        choices: what it may be, where that is a list.
        names_files: it becomes a part of a file's name.
        changes_numbers: whether two runs that differ in it are two runs: it is in their identity. False for where and
            how a run reports, and for what other keys have taken their values from.
        swept: whether the runs of one figure may differ in it.
        neutral: the value that leaves the identity of a run as it was before there was the key. `key` takes the default
            where there is one; to change a default, keep the old one here.
        neutral_entries: the same for the keys of an open dictionary.
        items: the schema of a list's items, which Hydra takes as they come.
        kinds: the schemas of a group that comes in several, by its key `kind`.
    """

    unit: str = ""
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    maximum: float | None = None
    choices: Sequence[str | None] = ()
    names_files: bool = False
    changes_numbers: bool = True
    swept: bool = False
    neutral: Any = MISSING
    neutral_entries: Mapping[str, Any] = field(default_factory=dict)
    items: type | None = None
    kinds: Mapping[str, type] = field(default_factory=dict)

    def check(self, path: str, value: Any) -> None:
        """Raises ConfigError, in one line, for a value outside of the range or the choices."""
        if self.choices and value not in self.choices:
            names = [choice for choice in self.choices if choice is not None]
            expected = f"expected one of {', '.join(names)}{nearest(str(value), names)}"
            raise ConfigError(f"{path}: got {value!r}, {expected}")
        if self.names_files and not is_file_name(value):
            raise ConfigError(f"{path}: got {value!r}, expected {FILE_NAME_TEXT}")
        if isinstance(value, int) and abs(value) > MAX_COUNT:
            raise ConfigError(f"{path}: got {value}, expected at most {MAX_COUNT}")
        bounds = {">=": self.minimum, ">": self.above, "<": self.below}
        expected = " and ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)
        if value is None or not (expected or self.maximum is not None):
            return
        if self.maximum is not None and value > self.maximum:
            raise ConfigError(f"{path}: got {value}, expected at most {self.maximum}")
        inside = (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not inside:
            raise ConfigError(f"{path}: got {value}, expected {expected}")

    def is_neutral(self, value: Any) -> bool:
        """Whether a value leaves the identity as it is without the key."""
        return same_value(value, self.neutral)


def same_value(one: Any, other: Any) -> bool:
    """Equality to which 1 and 1.0 are the same, 1 and True are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def key(default: Any = MISSING, *, factory: Any = None, **rule: Any) -> Any:
    """A dataclass field with a `KeyRule`; without a default or a factory the config must give its value."""
    if default is not MISSING:
        rule.setdefault("neutral", default)
    metadata = {"rule": KeyRule(**rule)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


NO_RULE = KeyRule()


@functools.cache
def rules(schema: type) -> dict[str, KeyRule]:
    """The rules of a schema's keys, in their order: not to be changed."""
    return {one.name: one.metadata.get("rule", NO_RULE) for one in dataclasses.fields(schema)}


@functools.cache
def type_hints(schema: type) -> dict[str, Any]:
    """The types of a schema's keys."""
    return typing.get_type_hints(schema)


def group_schema(rule: KeyRule, hint: Any, values: Any) -> type | None:
    """The schema of a group of keys: of its type, or of its `kind`; None where the key is no group.

    A kind that is not known has the keys that all kinds have.
    """
    if not dataclasses.is_dataclass(hint):
        return None
    assert isinstance(hint, type)
    kind = values.get("kind", next(iter(rule.kinds), None)) if isinstance(values, Mapping) else None
    return rule.kinds.get(kind, hint) if isinstance(kind, str) else hint


def schema_keys(parents: Sequence[str], schema: type) -> list[str]:
    """The keys that a schema knows below a path; empty where it leaves them open.

    >>> from palimpsa.config.schema import TrainConfig
    >>> schema_keys(["task", "stages", "0"], TrainConfig)
    ['seq_len', 'num_pairs', 'max_steps', 'in_figure']
    """
    nodes: list[type] = [schema]
    items: list[type] = []
    for parent in parents:
        if parent.isdecimal():
            nodes, items = items, []
            continue
        below: list[type] = []
        items = []
        for node in nodes:
            rule = rules(node).get(parent, NO_RULE)
            items += [rule.items] if rule.items else []
            hint = type_hints(node).get(parent)
            below += list(rule.kinds.values()) or ([hint] if isinstance(hint, type) else [])
        nodes = [node for node in below if dataclasses.is_dataclass(node)]
    return list(dict.fromkeys(one.name for node in nodes for one in dataclasses.fields(node)))


def convert(schema: type, values: Mapping[str, Any], path: str = "") -> Any:
    """A mapping as the dataclass that describes it, without a look at ranges.

    Args:
        path: of the mapping, with a dot at its end, for errors.

    Raises:
        ConfigError: for a key that is unknown or missing, or a value of another type.
    """
    known = rules(schema)
    for name in values:
        if name not in known:
            raise ConfigError(unknown_key(f"{path}{name}", known))
    hints = type_hints(schema)
    missing = [
        one.name
        for one in dataclasses.fields(schema)
        if one.name not in values
        and one.default in (MISSING, dataclasses.MISSING)
        and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path}{missing[0]}: missing, expected {_type_name(hints[missing[0]])}")
    return schema(
        **{name: _convert(value, hints[name], known[name], f"{path}{name}") for name, value in values.items()}
    )


def _convert(value: Any, hint: Any, rule: KeyRule, path: str) -> Any:
    if rule.items is not None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise ConfigError(f"{path}: got {value!r}, expected a list")
        if not value:
            raise ConfigError(f"{path}: got an empty list, expected at least one item")
        return [_convert(item, rule.items, NO_RULE, f"{path}[{i}]") for i, item in enumerate(value)]
    _check_kind(value, rule, path)
    schema = group_schema(rule, hint, value)
    if schema is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: got {value!r}, expected {', '.join(rules(schema))}")
        return convert(schema, value, f"{path}.")
    if not _is_of(value, hint):
        raise ConfigError(f"{path}: got {value!r}, expected {_type_name(hint)}")
    return float(value) if hint is float else value


def _check_kind(value: Any, rule: KeyRule, path: str) -> None:
    if rule.kinds and isinstance(value, dict) and value.get("kind") not in rule.kinds:
        found = value.get("kind")
        expected = f"expected one of {', '.join(rule.kinds)}{nearest(str(found), rule.kinds)}"
        raise ConfigError(f"{path}.kind: got {found!r}, {expected}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type; an int is a float too, and a bool only a bool."""
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, option) for option in typing.get_args(hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_is_of(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)
