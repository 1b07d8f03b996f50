"""Offline W&B runs: what their .wandb files say, without wandb's own reader, which comes and goes between versions.

A file is 7 bytes of header and blocks of 32 KiB; a record is one piece, or several that never cross a block, each with
a header of 7 bytes: a checksum, the length of what follows, and which piece it is. A record is a protocol buffer.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.dashboard.committed import Cache, Problems
from palimpsa.runs.files import read_regular
from palimpsa.runs.read import head_columns
from palimpsa.runs.schema import FileUnreadableError, ResultError

MAGIC = b":W&B"
HEADER_SIZE = 7
BLOCK_SIZE = 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class OfflineFile:
    """One .wandb file. host: the machine's name, which no page may tell; ended: the run has said how it ended."""

    path: Path
    run_id: str
    name: str
    project: str
    group: str
    host: str
    ended: bool
    history: pd.DataFrame
    config: dict[str, Any]


@dataclass
class OfflineRun:
    """A W&B run, of one file or, where it was resumed, of several; the folders in the order of their starts."""

    run_id: str
    name: str
    project: str
    group: str
    folders: list[Path] = field(default_factory=list)
    ended: bool = False
    histories: list[pd.DataFrame] = field(default_factory=list)

    @property
    def is_uploaded(self) -> bool:
        """Whether wandb sync has left its mark in all of its folders."""
        return all(any(folder.glob("*.wandb.synced")) for folder in self.folders)

    @property
    def history(self) -> pd.DataFrame:
        """Its curves, by step; of a step that was logged twice the later row, where the run was resumed before it."""
        if not self.histories:
            return pd.DataFrame({"step": []})
        return pd.concat(self.histories).groupby("step", as_index=False).last()


def find_offline_folders(roots: list[Path]) -> list[Path]:
    """The folders offline-run-* below these roots, in a wandb/ or beside run directories; sorted by their start."""
    # Not Path.is_dir, which raises where one may not look: who lists the run directories tells of that.
    seen = [folder for root in roots if os.path.isdir(root) for folder in root.glob("**/offline-run-*")]
    found = {folder.resolve(): folder for folder in seen if os.path.isdir(folder)}
    return sorted(found.values(), key=lambda folder: (folder.name, str(folder)))


def read_offline_runs(roots: list[Path], problems: Problems, cache: Cache) -> tuple[list[OfflineRun], set[str]]:
    """The offline runs below these roots, and the names of the machines that wrote them.

    Folders of one id that lie side by side are one run, which was resumed. One of that id in another place is another
    run, of the same config.
    """
    runs: dict[tuple[Path, str], OfflineRun] = {}
    hosts: set[str] = set()
    for folder in find_offline_folders(roots):
        files = sorted(folder.glob("*.wandb"))
        if not files:
            problems.add("wandb", f"{folder}: holds no .wandb file, expected one")
        for path in files:
            found = problems.attempt(
                "wandb", lambda path=path: cache.get("wandb", path, [path], lambda: read_offline_file(path)), None
            )
            if found is None:
                continue
            hosts.add(found.host)
            own = OfflineRun(found.run_id, found.name, found.project, found.group)
            run = runs.setdefault((folder.resolve().parent, found.run_id), own)
            run.folders.append(folder)
            run.ended = found.ended
            run.histories.append(found.history)
    return list(runs.values()), hosts - {""}


def read_offline_file(path: Path) -> OfflineFile:
    """A .wandb file, as far as it has been written.

    Raises:
        ResultError: it is no such file, or holds no run.
    """
    # Here and not above: half a second, and there may be no such file.
    from wandb.proto import wandb_internal_pb2

    try:
        content = read_regular(path)
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read ({error.strerror})") from None
    run, ended, rows = None, False, []
    for data in records(path, content):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(data)
        except Exception as error:
            # protobuf's DecodeError, whose module depends on its version.
            raise ResultError(f"{path}: holds a record that is none of W&B's ({type(error).__name__})") from None
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "exit":
            ended = True
        elif kind == "history":
            rows.append(_history_row(record.history))
    if run is None:
        raise ResultError(f"{path}: holds no run, expected its record; was the file cut short?")
    config = {item.key: _value(item.value_json) for item in run.config.update if item.key != "_wandb"}
    return OfflineFile(
        path=path,
        run_id=run.run_id,
        name=run.display_name or run.run_id,
        project=run.project,
        group=run.run_group,
        host=run.host,
        ended=ended,
        history=_history_frame(rows),
        config=config,
    )


def records(path: Path, content: bytes) -> Iterator[bytes]:
    """The records of a file's content; one that is being written, at its end, is left out.

    Raises:
        ResultError: it is no .wandb file, or its pieces do not fit together.
    """
    if not content.startswith(MAGIC) or len(content) < HEADER_SIZE:
        raise ResultError(f"{path}: begins with {content[:4]!r}, expected {MAGIC!r}: no .wandb file")
    place, parts = HEADER_SIZE, []
    while place + HEADER_SIZE <= len(content):
        left = BLOCK_SIZE - place % BLOCK_SIZE
        if left < HEADER_SIZE:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        start, place = place + HEADER_SIZE, place + HEADER_SIZE + length
        if kind == 0 and length == 0:
            # The rest of a block that was made longer before it is filled.
            return
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or length > left - HEADER_SIZE:
            raise ResultError(f"{path}: damaged at byte {start - HEADER_SIZE}, expected the header of a record")
        if place > len(content):
            return
        parts = [*parts, content[start:place]] if kind in (MIDDLE, LAST) else [content[start:place]]
        if kind in (WHOLE, LAST):
            yield b"".join(parts)


def _history_row(history: Any) -> dict[str, Any]:
    row = {"/".join(item.nested_key) or item.key: _value(item.value_json) for item in history.item}
    return {"step": row.pop("_step", history.step.num), **row}


def _history_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Steps and the columns that pages show: numbers alone."""
    frame = pd.DataFrame(rows)
    wanted = ["step", "loss", "window_mean", "metaplasticity_mean"]
    if frame.empty:
        return pd.DataFrame({name: pd.Series(dtype="float64") for name in wanted})
    names = [*wanted, *head_columns(frame)]
    numbers = {name: pd.to_numeric(frame[name].map(_number), errors="coerce") for name in names if name in frame}
    return pd.DataFrame(numbers).reindex(columns=names).dropna(subset=["step"])


def _number(value: Any) -> Any:
    """A value, NaN for what no float holds: pandas raises at an integer of four hundred digits."""
    try:
        float(value)
    except (OverflowError, TypeError, ValueError):
        return math.nan
    return value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError):
        return None
