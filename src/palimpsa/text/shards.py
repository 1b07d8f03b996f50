"""Token shards: documents of token ids, one after the other, in files of equal length that are read by position."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palimpsa.config.errors import ConfigError
from palimpsa.runs.files import write_atomic
from palimpsa.text.files import MANIFEST, UNFINISHED, FileFacts
from palimpsa.text.manifest import DTYPES, Manifest, TokenizerFacts, read_manifest

TOKENS_PER_SHARD = 100_000_000


class TokenShards:
    """Token shards on disk, memory-mapped: `TokenShards.open(directory)`.

    Pickled it is the folder's name: a process that gets it opens the files itself.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        dtype = np.dtype(DTYPES[manifest.dtype])
        self._maps = [np.memmap(directory / one.file, dtype, mode="r") for one in manifest.shards]
        self._starts = np.cumsum([0, *(len(one) for one in self._maps)])
        self.document_ends = _load_documents(directory, manifest.document_ends, manifest)
        self.document_bytes = _load_documents(directory, manifest.document_bytes, manifest)

    @classmethod
    def open(cls, directory: Path | str, *, verify: Literal["sizes", "hashes"] = "sizes") -> TokenShards:
        """Opens a folder of token shards.

        Args:
            directory: of one split, `DIR/train`.
            verify: "sizes": every file is there, as long as the manifest says, and the counts agree; "hashes": every
                byte is the one that was written.

        Raises:
            ConfigError: naming the file that does not fit the manifest.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        itemsize = np.dtype(DTYPES[manifest.dtype]).itemsize
        for facts in [*manifest.shards, manifest.document_ends, manifest.document_bytes]:
            facts.check(directory, by_hash=verify == "hashes")
        total = sum(one.size for one in manifest.shards)
        if total != manifest.num_tokens * itemsize:
            raise ConfigError(
                f"{directory / MANIFEST}: got num_tokens={manifest.num_tokens}, expected the {total // itemsize} "
                "tokens of its shards"
            )
        shards = cls(directory, manifest)
        shards._check_documents()
        return shards

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenShards.open, (self.directory,)

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @property
    def num_documents(self) -> int:
        return self.manifest.num_documents

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer: every id is below it."""
        return self.manifest.tokenizer.vocab_size

    @property
    def end_of_text(self) -> int:
        """The id that ends every document."""
        return self.manifest.tokenizer.end_of_text

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over what changes numbers; see `Manifest.digest`."""
        return self.manifest.digest

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The ids at positions start to stop of all shards: int64 [stop - start], a copy.

        Raises:
            ValueError: for positions outside of 0 to `num_tokens`.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(f"start, stop: got {start}, {stop}, expected 0 <= start <= stop <= {self.num_tokens}")
        result = np.empty(stop - start, np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        position = start
        while position < stop:
            first = int(self._starts[shard])
            end = min(stop, int(self._starts[shard + 1]))
            result[position - start : end - start] = self._maps[shard][position - first : end - first]
            position, shard = end, shard + 1
        return result

    def _check_documents(self) -> None:
        ends, path = self.document_ends, self.directory / self.manifest.document_ends.file
        if ends[0] <= 0 or np.any(ends[1:] <= ends[:-1]) or ends[-1] != self.num_tokens:
            raise ConfigError(f"{path}: got ends up to {ends[-1]}, expected ever later ones up to {self.num_tokens}")


def _load_documents(directory: Path, facts: FileFacts, manifest: Manifest) -> np.ndarray:
    path = directory / facts.file
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path}: got a file that is no array ({error}), expected int64 numbers in .npy") from error
    if found.dtype != np.int64 or found.shape != (manifest.num_documents,):
        raise ConfigError(
            f"{path}: got {found.dtype} {list(found.shape)}, expected int64 [{manifest.num_documents}], "
            "one for each document of the manifest"
        )
    return found


class ShardWriter:
    """Writes token shards: documents with `add` or `add_documents`, then `finish`.

    A shard is on disk as soon as it is full. `checkpoint` saves the rest as well, and a new writer's `restore` goes on.

    Args:
        directory: of one split; made where it is missing. An old manifest in it is removed first.
        tokenizer: what the manifest says of the ids.
        tokens_per_shard: of all files but the last.
    """

    def __init__(
        self, directory: Path | str, *, tokenizer: TokenizerFacts, tokens_per_shard: int = TOKENS_PER_SHARD
    ) -> None:
        if tokens_per_shard < 1:
            raise ConfigError(f"tokens_per_shard: got {tokens_per_shard}, expected >= 1")
        self.directory = Path(directory)
        self.num_tokens = 0
        self.num_documents = 0
        self._tokenizer = tokenizer
        self._dtype = np.dtype(DTYPES[tokenizer.dtype])
        self._tokens_per_shard = tokens_per_shard
        self._shards: list[FileFacts] = []
        self._num_checkpoints = 0
        # Tokens that no shard has yet, and [length, bytes] of the documents that no checkpoint has.
        self._tail: list[np.ndarray] = []
        self._tail_length = 0
        self._documents: list[np.ndarray] = []
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MANIFEST).unlink(missing_ok=True)

    @property
    def num_shards(self) -> int:
        """Those on disk."""
        return len(self._shards)

    def add(self, token_ids: Sequence[int] | np.ndarray, num_bytes: int) -> None:
        """Adds a document without its end_of_text, which is put behind it.

        Args:
            token_ids: of its text.
            num_bytes: of its text in UTF-8.
        """
        tokens = np.append(np.asarray(token_ids, np.int64), self._tokenizer.end_of_text)
        self.add_documents(tokens, np.array([len(tokens)]), np.array([num_bytes]))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray, num_bytes: np.ndarray) -> None:
        """Adds documents.

        Args:
            tokens: [sum of lengths], the ids of one document after the other, each with its end_of_text.
            lengths: [documents], in tokens.
            num_bytes: [documents], of their text in UTF-8.

        Raises:
            ValueError: for ids outside of the vocabulary, or a document that does not end with end_of_text.
            OSError: a shard cannot be written.
        """
        if not len(lengths):
            return
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._tokenizer.vocab_size:
            raise ValueError(
                f"tokens: got {tokens.min()} to {tokens.max()}, expected ids below vocab_size="
                f"{self._tokenizer.vocab_size} of {self._tokenizer.name}"
            )
        ends = np.cumsum(lengths)
        if ends[-1] != len(tokens) or np.any(tokens[ends - 1] != self._tokenizer.end_of_text):
            raise ValueError(f"tokens: expected documents that end with end_of_text={self._tokenizer.end_of_text}")
        self._tail.append(tokens.astype(self._dtype))
        self._tail_length += len(tokens)
        self._documents.append(np.stack([lengths, num_bytes], axis=1).astype(np.int64))
        self.num_tokens += len(tokens)
        self.num_documents += len(lengths)
        while self._tail_length >= self._tokens_per_shard:
            self._write_shard(self._tokens_per_shard)

    def _write_shard(self, length: int) -> None:
        tail = np.concatenate(self._tail)
        name = f"shard_{len(self._shards):05d}.bin"
        self._shards.append(self._write(name, tail[:length].data.cast("B")))
        self._tail = [tail[length:]]
        self._tail_length -= length

    def _write(self, name: str, content: bytes | memoryview) -> FileFacts:
        write_atomic(self.directory / name, content)
        return FileFacts(file=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def checkpoint(self) -> dict[str, Any]:
        """Writes what no shard has yet; returns what `restore` wants, as JSON has it."""
        number = self._num_checkpoints
        documents = np.concatenate([np.zeros((0, 2), np.int64), *self._documents])
        tail = np.concatenate([np.zeros(0, self._dtype), *self._tail])
        saved_documents = self._write(f"{UNFINISHED}/documents_{number:05d}.npy", _npy(documents))
        saved_tail = self._write(f"{UNFINISHED}/tail_{number:05d}.npy", _npy(tail))
        self._documents = []
        self._num_checkpoints += 1
        return {
            "shards": [asdict(one) for one in self._shards],
            "num_checkpoints": self._num_checkpoints,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "documents": asdict(saved_documents),
            "tail": asdict(saved_tail),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `checkpoint` was called.

        Raises:
            ConfigError: naming the file, where one that the checkpoint needs is missing or of another length.
        """
        self._shards = [FileFacts(**one) for one in state["shards"]]
        for facts in [*self._shards, *(FileFacts(**state[name]) for name in ("documents", "tail"))]:
            facts.check(self.directory, by_hash=facts not in self._shards)
        self._num_checkpoints = state["num_checkpoints"]
        self.num_tokens, self.num_documents = state["num_tokens"], state["num_documents"]
        self._tail = [np.load(self.directory / state["tail"]["file"], allow_pickle=False)]
        self._tail_length = len(self._tail[0])
        self._documents = []

    def remove_old_checkpoints(self) -> None:
        """Removes what the newest checkpoint, once it is written down, has taken the place of."""
        for path in (self.directory / UNFINISHED).glob("tail_*.npy"):
            if path.name != f"tail_{self._num_checkpoints - 1:05d}.npy":
                path.unlink()

    def finish(self, **facts: Any) -> TokenShards:
        """Writes the last shard, the documents and, when all of it is on disk, the manifest; checkpoints stay.

        Args:
            facts: `request`, `source`, `licences`, `versions` and `command` of the manifest.

        Raises:
            ConfigError: where no document was added.
            OSError: a file cannot be written.
        """
        if not self.num_documents:
            raise ConfigError(f"{self.directory}: got no documents, expected at least one")
        if self._tail_length:
            self._write_shard(self._tail_length)
        saved = [self.directory / UNFINISHED / f"documents_{k:05d}.npy" for k in range(self._num_checkpoints)]
        documents = np.concatenate([*(np.load(path, allow_pickle=False) for path in saved), *self._documents])
        manifest = Manifest(
            dtype=self._tokenizer.dtype,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=int(documents[:, 1].sum()),
            tokens_per_shard=self._tokens_per_shard,
            shards=self._shards,
            document_ends=self._write("document_ends.npy", _npy(np.cumsum(documents[:, 0]))),
            document_bytes=self._write("document_bytes.npy", _npy(documents[:, 1])),
            tokenizer=self._tokenizer,
            **facts,
        )
        write_atomic(self.directory / MANIFEST, manifest.to_json())
        return TokenShards(self.directory, manifest)


def _npy(array: np.ndarray) -> memoryview:
    """An array as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getbuffer()
