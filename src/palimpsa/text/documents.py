"""Local files as batches of records: JSONL, parquet and plain text, compressed or not, from wherever one stopped."""

from __future__ import annotations

import glob
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from palimpsa.config.errors import ConfigError
from palimpsa.text.files import XzReader, file_sha256
from palimpsa.text.records import Batch, Fields, decode, undecodable

# Of text, in one batch: a quarter of a second of SentencePiece's on a core.
BATCH_BYTES = 512 * 1024
JSONL = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
PLAIN = (".txt", ".text", ".md")
COMPRESSED = (".xz", ".gz", ".zst")
SAMPLE = Path(__file__).parent / "sample" / "persuasion.txt"
SAMPLE_CHAPTER = r"Chapter \d+"
SAMPLE_LICENCE = "public domain"
_ROWS_PER_BATCH = 256
_DAMAGED = (lzma.LZMAError, EOFError, zlib.error, gzip.BadGzipFile)


class FileSource:
    """The documents of local files, one file after the other.

    Args:
        files: their paths; patterns ("data/*.jsonl.xz") and folders stand for the files in them, sorted.
        fields: where a record has what; plain text has the default licence.
        split_text_at: of plain text, a regular expression that the whole first line of every document matches; None: a
            file is a document.
        key: of the config, that errors name.

    Raises:
        ConfigError: naming the file that is missing, empty or of a kind that nobody reads.
    """

    def __init__(
        self, files: Sequence[str], fields: Fields, split_text_at: str | None = None, key: str = "source.files"
    ) -> None:
        self.fields = fields
        self.paths = _find(files, key)
        try:
            self._first_line = re.compile(split_text_at) if split_text_at is not None else None
        except re.error as error:
            raise ConfigError(f"source.split_text_at: got {split_text_at!r}, no regular expression: {error}") from error
        self._sizes = [path.stat().st_size for path in self.paths]

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it: the files' names, sizes and hashes, which takes reading them."""
        files = [
            {"file": path.name, "size": size, "sha256": file_sha256(path)}
            for path, size in zip(self.paths, self._sizes, strict=True)
        ]
        return {"kind": "files", "files": files}

    def batches(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """The records in order, from where an earlier batch ended.

        Args:
            state: `after` of the batch before; None: from the start.

        Raises:
            ConfigError: naming a file that is damaged or holds no text, and the line.
        """
        state = state or {"file": 0}
        for place in range(state["file"], len(self.paths)):
            path, kind = self.paths[place], _kind(self.paths[place])
            read = _read_lines if kind in JSONL else self._read_rows if kind in PARQUET else self._read_plain
            before, total = sum(self._sizes[:place]), sum(self._sizes)
            for batch, position in read(path, state if place == state["file"] else {}):
                fraction = min(1.0, (before + position * self._sizes[place]) / total)
                yield replace(batch, after={"file": place, **batch.after}, fraction=fraction)

    def _read_rows(self, path: Path, state: dict[str, Any]) -> Iterator[tuple[Batch, float]]:
        import pyarrow
        import pyarrow.parquet

        names = [self.fields.text, *([self.fields.licence] if self.fields.licence else [])]
        done = state.get("rows", 0)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                total = file.metadata.num_rows
                if not total:
                    raise ConfigError(f"{path}: is empty, expected text in it")
                for name in names:
                    if name not in file.schema_arrow.names:
                        known = ", ".join(file.schema_arrow.names)
                        raise ConfigError(f"{path}: has no column {name!r}, expected one of {known}")
                first = 0
                for rows in file.iter_batches(_ROWS_PER_BATCH, columns=names):
                    kept = rows.slice(max(0, done - first))
                    first += rows.num_rows
                    if kept.num_rows:
                        number = first - kept.num_rows + 1
                        columns = [_column_values(kept.column(name), path, number) for name in names]
                        licences = columns[1] if self.fields.licence else None
                        batch = Batch(str(path), "row", number, {"rows": first}, texts=columns[0], licences=licences)
                        yield batch, first / total
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{path}: is damaged or no parquet file: {error}") from error

    def _read_plain(self, path: Path, state: dict[str, Any]) -> Iterator[tuple[Batch, float]]:
        with _opened(path) as (stream, _):
            data = _read(stream, -1, path)
        if not data.strip():
            raise ConfigError(f"{path}: is empty, expected text in it")
        text = _decode_lines(data, path).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        documents = [text] if self._first_line is None else _split(text, self._first_line)
        for number, document in enumerate(documents[state.get("documents", 0) :], start=state.get("documents", 0) + 1):
            batch = Batch(str(path), "document", number, {"documents": number}, texts=[document])
            yield batch, number / len(documents)


def sample_source() -> FileSource:
    """The novel that the repository ships, a document a chapter: sample/README.md says which and whence."""
    return FileSource([str(SAMPLE)], Fields("text", None, SAMPLE_LICENCE), SAMPLE_CHAPTER)


def _find(files: Sequence[str], key: str) -> list[Path]:
    paths: list[Path] = []
    for name in files:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if one.is_file() and _kind(one) is not None]
        elif path.exists():
            inside = [path]
        else:
            inside = [Path(one) for one in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(one)]
        if not inside:
            found = "no file of a kind that is read" if path.is_dir() else "no such file"
            raise ConfigError(f"{key}: {name}: {found}, expected {_kinds_text()}")
        paths += inside
    if not paths:
        raise ConfigError(f"{key}: got [], expected at least one file: {_kinds_text()}")
    for path in paths:
        if _kind(path) is None:
            raise ConfigError(f"{key}: {path}: got a file ending in {path.suffix!r}, expected {_kinds_text()}")
        if not path.is_file() or path.stat().st_size == 0:
            raise ConfigError(f"{key}: {path}: is {'empty' if path.is_file() else 'no file'}, expected text in it")
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{key}: {path}: cannot be read: permission denied")
    seen: set[Path] = set()
    for path in paths:
        # By whichever of its names: "a.jsonl" and "/home/me/a.jsonl".
        if path.resolve() in seen:
            raise ConfigError(f"{key}: got {path} twice, expected each file once")
        seen.add(path.resolve())
    return paths


def _kinds_text() -> str:
    return f"files ending in {', '.join((*JSONL, *PLAIN))} (and {', '.join(COMPRESSED)}) or {PARQUET[0]}"


def _kind(path: Path) -> str | None:
    """The ending that says what is in a file; None for one that nobody reads."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    kind = os.path.splitext(name)[1]
    is_compressed_parquet = kind in PARQUET and not path.name.lower().endswith(PARQUET)
    return kind if kind in (*JSONL, *PARQUET, *PLAIN) and not is_compressed_parquet else None


class _opened:
    """A file's content, decompressed, and the file itself, whose position says how far one is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[BinaryIO, BinaryIO]:
        self._raw = self._path.open("rb")
        ending = self._path.suffix.lower()
        if ending == ".xz":
            stream: Any = io.BufferedReader(XzReader(self._raw), BATCH_BYTES)
        elif ending == ".gz":
            stream = gzip.open(self._raw, "rb")
        elif ending == ".zst":
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._raw, mode="r"), "zstd")
        else:
            stream = self._raw
        return stream, self._raw

    def __exit__(self, *_: object) -> None:
        self._raw.close()


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return stream.read() if size < 0 else stream.read(size)
    except _DAMAGED as error:
        raise ConfigError(f"{path}: is damaged or cut off: {error}") from error
    except OSError as error:
        # pyarrow's, of a zstd file, has no number.
        if error.errno is not None:
            raise
        raise ConfigError(f"{path}: is damaged or cut off: {error}") from error


def _read_lines(path: Path, state: dict[str, Any]) -> Iterator[tuple[Batch, float]]:
    """Whole lines, about `BATCH_BYTES` of them at a time."""
    position, number = state.get("bytes", 0), state.get("lines", 0)
    size = path.stat().st_size
    with _opened(path) as (stream, raw):
        # Read over rather than sought: a compressed file cannot do otherwise.
        skipped = 0
        while skipped < position:
            skipped += len(block := _read(stream, min(BATCH_BYTES, position - skipped), path))
            if not block:
                raise ConfigError(f"{path}: ends after {skipped} bytes, expected more than the {position} read before")
        # Of a file that was begun before, what was read then may have had text.
        rest, is_empty = b"", position == 0
        while block := _read(stream, BATCH_BYTES, path):
            pieces = [rest, block]
            while b"\n" not in pieces[-1] and (more := _read(stream, BATCH_BYTES, path)):
                pieces.append(more)
            data = b"".join(pieces)
            is_empty = is_empty and data.isspace()
            end = data.rfind(b"\n") + 1 or len(data)
            lines, rest = data[:end], data[end:]
            yield _lines(path, lines, position, number), raw.tell() / size
            position, number = position + len(lines), number + lines.count(b"\n")
        if is_empty:
            raise ConfigError(f"{path}: is empty, expected text in it")
        if rest:
            yield _lines(path, rest, position, number), 1.0


def _lines(path: Path, lines: bytes, position: int, number: int) -> Batch:
    after = {"bytes": position + len(lines), "lines": number + lines.count(b"\n")}
    return Batch(str(path), "line", number + 1, after, lines=lines)


def _column_values(column: Any, path: Path, first: int) -> list[Any]:
    """The values of a pyarrow column, whose rows are counted from `first`."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for number, value in enumerate(column, start=first):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise undecodable(error, f"{path}:{number}") from error
        raise


def _decode_lines(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = data.count(b"\n", 0, error.start) + 1
        return decode(data[start : error.end], f"{path}:{line}")


def _split(text: str, first_line: re.Pattern[str]) -> list[str]:
    """The documents of a text, of which the first may begin without a line that matches."""
    documents: list[list[str]] = [[]]
    for line in text.splitlines(keepends=True):
        if first_line.fullmatch(line.rstrip("\r\n")):
            documents.append([])
        documents[-1].append(line)
    joined = ["".join(lines).strip() for lines in documents]
    return [one for one in joined if one]
