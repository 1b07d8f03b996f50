"""Which run a config describes: the keys that change numbers, as a hash, whatever tree wrote the config.

A plain config here is what `config.schema.plain` makes, or what it made in an older tree and `upgraded` has read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from palimpsa.config.keys import NO_RULE, KeyRule, group_schema, rules, type_hints
from palimpsa.config.moved import MOVED_KEYS
from palimpsa.config.schema import TrainConfig

# Of the classes that MIXER_DEFAULTS speaks of.
OWN_MIXERS = "palimpsa.mixers."


@dataclass(frozen=True)
class _Entry:
    """One value of a config that makes a difference: its key, whether it changes numbers, whether figures sweep it."""

    key: str
    value: Any
    changes_numbers: bool
    swept: bool


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plain config that decides what is computed, as flat dotted keys.

    Without the keys that change no number, and without those at their neutral defaults: whether a default is spelled
    out makes no difference. A key that the schema does not know belongs to it.

    >>> identity({"seed": 1, "results_dir": "results", "variant": "", "optimizer": {"lr": 0.01}})
    {'seed': 1, 'optimizer.lr': 0.01}
    """
    return {entry.key: entry.value for entry in _entries(config) if entry.changes_numbers}


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that two plain configs share when they describe the same computation."""
    return _digits(identity(config))


def protocol(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the identity that all runs of a figure share: without the keys that its sweep may vary.

    >>> protocol({"seed": 1, "optimizer": {"lr": 0.01, "beta1": 0.9}})
    {'optimizer.beta1': 0.9}
    """
    return {entry.key: entry.value for entry in _entries(config) if entry.changes_numbers and not entry.swept}


def protocol_hash(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that the runs of one figure share."""
    return _digits(protocol(config))


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], *, swept: bool = True
) -> list[tuple[str, str | None, str | None]]:
    """The keys that two plain configs compute something else by, in order, and both values in words; None for no key.

    Args:
        swept: also those in which the runs of one figure may differ.
    """
    part = identity if swept else protocol
    first, second, old, new = part(one), part(other), flatten(one), flatten(other)
    missing = object()
    return [
        (key, repr(old[key]) if key in old else None, repr(new[key]) if key in new else None)
        for key in sorted(first.keys() | second.keys())
        if first.get(key, missing) != second.get(key, missing)
    ]


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain config of an older tree, with each key where it is today; one of today's as it is.

    A key that has moved keeps the value that stands at its new place already.
    """
    new = copy.deepcopy(dict(config))
    _split_wide_keys(new)
    for old, place in MOVED_KEYS.items():
        found, value = _take(new, old.split("."))
        if found:
            top, *groups, name = place.split(".")
            group = new.get(top)
            for part in groups:
                group = group.setdefault(part, {}) if isinstance(group, dict) else None
            if isinstance(group, dict):
                group.setdefault(name, value)
    return new


def with_key_expansion(stored: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` config of an older tree's checkpoint, a doubled head_k_dim as the key_expansion that `model` has."""
    new = copy.deepcopy(dict(stored))
    old_mixer, mixer = new.get("mixer"), model["mixer"]
    if isinstance(old_mixer, dict) and "key_expansion" not in old_mixer and "key_expansion" in mixer:
        factor, width = mixer["key_expansion"], old_mixer.get("head_k_dim")
        if factor != 1 and width == factor * mixer["head_k_dim"]:
            old_mixer |= {"key_expansion": factor, "head_k_dim": mixer["head_k_dim"]}
    return new


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digits(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_canonical(values), sort_keys=True).encode()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    """With whole numbers as integers: 10 and 10.0 are one value, as are 0.0 and -0.0."""
    if isinstance(value, Mapping):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _entries(
    values: Mapping[str, Any], schema: type | None = TrainConfig, group: KeyRule = NO_RULE, prefix: str = ""
) -> Iterator[_Entry]:
    """The values that are not neutral. What a group's rule says holds for all keys below it."""
    known = rules(schema) if schema is not None else {}
    hints = type_hints(schema) if schema is not None else {}
    for name, value in values.items():
        rule = known.get(name) or _rule_below(group, name)
        rule = _inherit(rule, group)
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if "_target_" in value and not str(value["_target_"]).startswith(OWN_MIXERS):
                # Somebody's own class, whose defaults nobody here knows.
                rule = replace(rule, neutral_entries={})
            yield from _entries(value, group_schema(rule, hints.get(name), value), rule, f"{key}.")
        elif not rule.is_neutral(value):
            yield _Entry(key, _reduced(value, rule), rule.changes_numbers, rule.swept)


def _rule_below(group: KeyRule, name: str) -> KeyRule:
    """The rule of a key that no schema declares: of an open dictionary, or unknown."""
    return KeyRule(neutral=group.neutral_entries[name]) if name in group.neutral_entries else NO_RULE


def _inherit(rule: KeyRule, group: KeyRule) -> KeyRule:
    # A sweep's ledger comes by here some hundred thousand times.
    if group is NO_RULE or (group.changes_numbers and not group.swept):
        return rule
    changes_numbers = rule.changes_numbers and group.changes_numbers
    return replace(rule, changes_numbers=changes_numbers, swept=rule.swept or group.swept)


def _reduced(value: Any, rule: KeyRule) -> Any:
    """The items of a list of groups without what is neutral in them."""
    if rule.items is None or not isinstance(value, list):
        return value
    return [
        {entry.key: entry.value for entry in _entries(item, rule.items) if entry.changes_numbers}
        if isinstance(item, Mapping)
        else item
        for item in value
    ]


def _take(config: dict[str, Any], path: list[str]) -> tuple[bool, Any]:
    """Takes a key out of nested dictionaries, with the groups that it leaves empty: whether it was there, its value."""
    *groups, name = path
    nodes = [config]
    for part in groups:
        below = nodes[-1].get(part)
        if not isinstance(below, dict):
            return False, None
        nodes.append(below)
    if name not in nodes[-1]:
        return False, None
    value = nodes[-1].pop(name)
    for parent, part in zip(reversed(nodes[:-1]), reversed(groups), strict=True):
        if not parent[part]:
            del parent[part]
    return True, value


def _split_wide_keys(config: dict[str, Any]) -> None:
    """The controls with twice the key width had it as a number; today they have the others' width, and an expansion."""
    found, _ = _take(config, ["scale", "wide_head_k_dim"])
    model = config.get("model")
    if not found or not isinstance(model, dict) or "_wide" not in str(model.get("name")):
        return
    mixer = model.get("mixer")
    if isinstance(mixer, dict) and isinstance(mixer.get("head_k_dim"), int) and mixer["head_k_dim"] % 2 == 0:
        mixer["head_k_dim"] //= 2
        mixer["key_expansion"] = 2
