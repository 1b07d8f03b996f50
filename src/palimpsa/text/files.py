"""The files of token shards: their names, what they must hold, how they go; and .xz files to their last byte."""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import key

MANIFEST = "manifest.json"
# The folder of what a writer that is not finished needs to go on.
UNFINISHED = "unfinished"
_BLOCK = 1 << 20
_XZ_BLOCK = 1 << 17


@dataclass(frozen=True)
class FileFacts:
    """A file beside the manifest, or in a folder there."""

    file: str
    size: int = key(unit="bytes", minimum=0)
    sha256: str = key()

    def check(self, directory: Path, *, by_hash: bool) -> None:
        """Raises ConfigError, naming the file, where it is not there or of another length; by_hash: of other bytes."""
        path = directory / self.file
        if not path.is_file():
            raise ConfigError(f"{path}: missing, expected the {self.size} bytes that were written")
        size = path.stat().st_size
        if size != self.size:
            raise ConfigError(f"{path}: got {size} bytes, expected the {self.size} that were written")
        if by_hash and file_sha256(path) != self.sha256:
            raise ConfigError(f"{path}: got other bytes than those that were written: its SHA-256 is another")


def file_sha256(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def files_sha256(path: Path) -> str:
    """SHA-256, in hex, over the name and the bytes of a file, or of each file of a folder, not of folders in it."""
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
    found = hashlib.sha256()
    for one in files:
        found.update(f"{one.name}\0{file_sha256(one)}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def remove_shards(directory: Path) -> None:
    """Removes what writers have left in a folder, the manifest first; files of others stay."""
    (directory / MANIFEST).unlink(missing_ok=True)
    for pattern in ("shard_[0-9]*.bin", "document_*.npy"):
        for path in directory.glob(pattern):
            path.unlink()
    remove_checkpoints(directory)


def remove_checkpoints(directory: Path) -> None:
    """Removes what a writer needed to go on."""
    shutil.rmtree(directory / UNFINISHED, ignore_errors=True)


class XzReader(io.RawIOBase):
    """What the streams of an .xz file hold, one after the other, whatever zeros xz has padded them with.

    Python's own reader ends without a word at the first stream that is damaged.

    Reading raises lzma.LZMAError for bytes that are no stream, also behind one, and EOFError for a stream that is cut
    off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._stream = lzma.LZMADecompressor()
        # Of the file, read and not yet given to the stream.
        self._block = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof and not self._begin_stream():
                return 0
            block, self._block = self._block, b""
            if self._stream.needs_input and not block and not (block := self._raw.read(_XZ_BLOCK)):
                raise EOFError("it ends within a stream of xz")
            if found := self._stream.decompress(block, len(buffer)):
                buffer[: len(found)] = found
                return len(found)

    def _begin_stream(self) -> bool:
        """Whether there is something behind the stream that has ended."""
        self._block = self._stream.unused_data.lstrip(b"\0")
        while not self._block and (block := self._raw.read(_XZ_BLOCK)):
            self._block = block.lstrip(b"\0")
        if self._block:
            self._stream = lzma.LZMADecompressor()
        return bool(self._block)
