"""The files of token shards: what they are called, what they must hold, and how they go."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import key

MANIFEST = "manifest.json"
# The folder of what a writer that is not finished needs to go on.
UNFINISHED = "unfinished"
_BLOCK = 1 << 20


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
