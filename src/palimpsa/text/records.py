"""Records, as a source hands them out and a process parses them: texts with their licences, or one clear error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from palimpsa.config.errors import ConfigError


@dataclass(frozen=True)
class Fields:
    """Where a record has what.

    Args:
        text: the field of a document's text.
        licence: the field of its licence or source; None: every document has `default_licence`.
    """

    text: str
    licence: str | None
    default_licence: str


@dataclass(frozen=True)
class Batch:
    """Some records in a row, as they were read: to be parsed where the time is.

    Args:
        place: the file, or the hub's name for it.
        unit: what is counted there, "line" or "record".
        first: the number of the first one, from 1.
        after: from where reading goes on behind this batch, as JSON has it.
        lines: whole lines of JSON, or
        texts: the documents themselves, and
        licences: theirs, where a field has them.
        fraction: of the source, read so far; None where nobody knows.
    """

    place: str
    unit: str
    first: int
    after: dict[str, Any] = field(default_factory=dict)
    lines: bytes | None = None
    texts: list[Any] | None = None
    licences: list[Any] | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class Document:
    """A text that is not empty."""

    text: str
    licence: str


def parse(batch: Batch, fields: Fields) -> list[Document]:
    """The documents of a batch; records without text are left out.

    Raises:
        ConfigError: naming file and line, for a line that is no JSON object, bytes that are no UTF-8, a missing field,
            or one that is no text.
    """
    if batch.lines is not None:
        found = _parse_lines(batch, fields)
    else:
        texts = batch.texts or []
        licences = batch.licences or [fields.default_licence] * len(texts)
        found = [
            _document(text, licence, f"{batch.place}:{batch.first + place}", fields)
            for place, (text, licence) in enumerate(zip(texts, licences, strict=True))
        ]
    return [one for one in found if one.text]


def _parse_lines(batch: Batch, fields: Fields) -> list[Document]:
    assert batch.lines is not None
    documents = []
    for number, line in enumerate(batch.lines.split(b"\n"), start=batch.first):
        if line and not line.isspace():
            documents.append(_parse_line(line, f"{batch.place}:{number}", number == 1, fields))
    return documents


def _parse_line(line: bytes, place: str, is_first: bool, fields: Fields) -> Document:
    text = decode(line, place)
    try:
        record = json.loads(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}") if is_first else text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: got a line that is no JSON ({error}), expected an object") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: got {type(record).__name__}, expected an object with a field {fields.text!r}")
    for name in filter(None, (fields.text, fields.licence)):
        if name not in record:
            known = ", ".join(map(str, record)) or "none"
            raise ConfigError(f"{place}: has no field {name!r}, expected one of its fields: {known}")
    licence = record[fields.licence] if fields.licence else fields.default_licence
    return _document(record[fields.text], licence, place, fields)


def _document(text: Any, licence: Any, place: str, fields: Fields) -> Document:
    if not isinstance(text, str):
        raise ConfigError(f"{place}: got {type(text).__name__} in {fields.text!r}, expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ConfigError(f"{place}: got {half}, half a character, at {error.start}, expected text") from error
    return Document(text, licence if isinstance(licence, str) else json.dumps(licence))


def decode(data: bytes, place: str) -> str:
    """UTF-8 as text. Raises ConfigError, naming the place and the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise undecodable(error, place) from error


def undecodable(error: UnicodeDecodeError, place: str) -> ConfigError:
    """The line about bytes that are no UTF-8."""
    return ConfigError(f"{place}: got the byte 0x{error.object[error.start]:02x} at {error.start}, expected UTF-8")
