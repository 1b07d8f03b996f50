"""The records of zero-shot tasks in local files: what each field may be, held to before anything is scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from palimpsa.config.errors import ConfigError
from palimpsa.runs.schema import shorten


@dataclass(frozen=True)
class Kind:
    """What a field may be: in words, and as a function of its value and of the record that it is in."""

    expected: str
    accepts: Callable[[Any, Mapping[str, Any]], bool]


def _is_text(value: Any) -> bool:
    # Half a surrogate pair, which JSON can spell, is no text.
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _is_words(value: Any) -> bool:
    return _is_text(value) and bool(value.strip())


def _are_words(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and len(values) > 1 and all(map(_is_words, values))


def _is_number(value: Any, first: int, last: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and first <= value <= last


def _is_number_or_digits(value: Any, first: int, last: int) -> bool:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 3:
        value = int(value)
    return _is_number(value, first, last)


def _are_labelled_choices(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    texts, labels = value.get("text"), value.get("label")
    return _are_words(texts) and _are_words(labels) and len(texts) == len(labels) == len(set(labels))


TEXT = Kind("text", lambda value, record: _is_text(value))
# Of an empty choice the harness would divide by the length.
WORDS = Kind("text that is not blank", lambda value, record: _is_words(value))
LAST_WORD = Kind(
    "text that ends with a word", lambda value, record: _is_text(value) and _is_words(value.split(" ")[-1])
)
GAP = Kind("text with a '_' to be filled", lambda value, record: _is_text(value) and "_" in value)
CHOICES = Kind("a list of two texts or more, none of them blank", lambda value, record: _are_words(value))
LABELLED_CHOICES = Kind(
    "an object of two lists, text and label, as long as each other: texts, two or more and none blank, and names for "
    "them, each another",
    lambda value, record: _are_labelled_choices(value),
)
ONE_LABEL = Kind("one of choices.label", lambda value, record: _is_text(value) and value in record["choices"]["label"])
NO_OR_YES = Kind("0 or 1", lambda value, record: _is_number(value, 0, 1))
OF_TWO = Kind('"1" or "2"', lambda value, record: value in ("1", "2"))
OF_THREE = Kind("1, 2 or 3", lambda value, record: _is_number_or_digits(value, 1, 3))


def number_of(choices: str) -> Kind:
    """The place of one of the choices in another field, from 0 on."""
    return Kind(
        f"the number of one of {choices}, from 0 on",
        lambda value, record: _is_number_or_digits(value, 0, len(record[choices]) - 1),
    )


def check_records(
    path: Path, fields: Mapping[str, Kind], local_fields: Mapping[str, Kind], missing_file: str, task: str
) -> bool:
    """Holds every record of a file to a task's fields.

    Args:
        path: JSON lines.
        fields: by name, in an order in which what a field refers to comes before it.
        local_fields: what records may have instead: the first one, without the first of `fields`, says so.
        missing_file: what is expected where there is no such file.
        task: its name.

    Returns:
        whether the records have the local fields.

    Raises:
        ConfigError: for a file that is missing or empty, and, with file and line, a record that is no JSON, lacks a
            field, or has one of another kind or of another type than the first record.
    """
    if not path.is_file():
        raise ConfigError(f"evaluation.data_dir: {path}: missing, expected {missing_file}")
    first: dict[str, Any] | None = None
    wanted = fields
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            record = _record(line, place)
            if first is None:
                first = record
                wanted = local_fields if local_fields and next(iter(fields)) not in record else fields
            _check_record(record, first, wanted, place)
    if first is None:
        raise ConfigError(f"{path}: is empty, expected the records of {task}, one a line")
    return wanted is not fields


def _check_record(record: dict[str, Any], first: dict[str, Any], fields: Mapping[str, Kind], place: str) -> None:
    for name, kind in fields.items():
        if name not in record:
            known = ", ".join(map(str, record)) or "none"
            raise ConfigError(f"{place}: has no field {name!r}, expected {', '.join(fields)}; its fields: {known}")
        value = record[name]
        if not kind.accepts(value, record):
            raise ConfigError(f"{place}: got {shorten(value)} in {name!r}, expected {kind.expected}")
        # A file's column is of one type for the library that reads it.
        if type(value) is not type(first[name]):
            raise ConfigError(
                f"{place}: got {shorten(value)} in {name!r}, expected one of the type of {shorten(first[name])}, which "
                "the first record has there"
            )


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: got a line that is no JSON ({error}), expected a record") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: got {type(record).__name__}, expected an object")
    return record
