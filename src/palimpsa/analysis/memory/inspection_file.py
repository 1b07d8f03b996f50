"""Read inspection.json, checked: what scripts/inspect_memory.py found of a model and a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import Block, ResultError

NAME = "inspection.json"
FORMAT, VERSION = "palimpsa memory inspection", 1
EXPECTED = "expected what scripts/inspect_memory.py writes"


def read_inspection(folder: Path) -> dict[str, Any]:
    """The inspection in a folder.

    Raises:
        ResultError: naming the file and the key, where there is none, or it is of another version or damaged.
    """
    path = folder / NAME
    if not path.exists():
        raise ResultError(f"{path}: not there, {EXPECTED}")
    content = read_json_object(path, EXPECTED)
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ResultError(
            f"{path}: got format {content.get('format')!r}, version {content.get('version')!r}, expected {FORMAT!r}, "
            f"version {VERSION}: scripts/inspect_memory.py --replace makes it anew"
        )
    try:
        _check(Block(path, "", content))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(f"{path}: {error!r}, {EXPECTED}") from error
    return content


def shown_head(content: dict[str, Any]) -> dict[str, Any]:
    """The head that the picture is of."""
    return next(head for head in content["heads"] if _place(head) == _place(content["shown"]))


def _place(one: dict[str, Any]) -> tuple[int, int]:
    return one["layer"], one["head"]


def _check(top: Block) -> None:
    model, sequence = top.block("model"), top.block("sequence")
    for key in ("name", "label", "mixer"):
        model.get(key, "string")
    for key in ("num_layers", "num_heads"):
        model.get(key, "count")
    model.get("has_importance", "bool")
    pieces, edges = sequence.get("pieces", "list"), sequence.get("edges", "list")
    T, columns = len(pieces), len(edges) - 1
    _expect(top, "sequence.pieces", T > 0 and all(isinstance(one, str) for one in pieces), "the text of each token")
    _expect(top, "sequence.edges", [edges[0], edges[-1]] == [0, T] and edges == sorted(set(edges)), "0 to the tokens")
    heads = top.get("heads", "list")
    for head in heads:
        if "details" in head:
            _check_details(top, head["details"], T, columns, model.get("has_importance", "bool"))
    shown = _place(top.values["shown"])
    _expect(top, "shown", any("details" in one and _place(one) == shown for one in heads), "a head with details")
    queries = top.values["queries"]
    if queries is not None:
        numbers = {len(queries[key]) for key in ("stored", "positions", "labels", "answers", "last_writer")}
        _expect(top, "queries", len(numbers) == 1 and all(0 <= one < T for one in queries["positions"]), "positions")
        _expect(top, "heads.own_pair", {len(head["own_pair"]["shown"]) for head in heads} == numbers, "one a query")
    for key in ("versions", "date"):
        _expect(top, f"provenance.{key}", key in top.get("provenance", "object"), "where it is from")


def _check_details(top: Block, details: dict[str, Any], T: int, columns: int, has_importance: bool) -> None:
    curves = [details["window"], details["variance"], details["recall_by_age"], *details["step_size"].values()]
    _expect(top, "heads.details", {len(curve) for curve in curves} == {columns}, f"curves of {columns} numbers")
    _expect(top, "heads.details.consolidation", len(details["consolidation"]) == T, f"{T} numbers")
    _expect(top, "heads.details.largest", len(details["largest"]) == T, f"{T} lists")
    lengths = [len(row) for row in details["attribution"]]
    _expect(top, "heads.details.attribution", lengths == [i + 1 for i in range(columns)], "a lower triangle")
    rows = details["importance"]
    is_map = rows is not None and bool(rows) and {len(row) for row in rows} == {columns}
    _expect(top, "heads.details.importance", is_map if has_importance else rows is None, f"rows of {columns} numbers")


def _expect(top: Block, key: str, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ResultError(f"{top.path}: {key} is damaged, expected {expected}")
