"""Every tokenizer behind one interface. A tokenizer.model is read by the sentencepiece library and by no other."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsa.config.errors import ConfigError
from palimpsa.text.files import file_sha256
from palimpsa.text.golden import golden_ids
from palimpsa.text.hub import cached_files, hub_files
from palimpsa.text.manifest import TokenizerFacts, json_sha256

BYTES = "bytes"
# What a folder, or a hub's repository, may hold, in the order in which it is looked for.
LAYOUTS = (("tokenizer.model",), ("tokenizer.json",), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
# Tokens that end a text, by the names of those that are published.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class TokenizerMissingError(ConfigError):
    """A tokenizer that is not on this machine: its files or its library are not there."""


class Tokenizer(ABC):
    """Makes ids of text and text of ids. `facts` is what the manifest says of it."""

    facts: TokenizerFacts

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Any]:
        """The ids of each text, without special ones at its ends; what looks like one in a text is text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; end_of_text has none."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text; see `encode_batch`."""
        return [int(one) for one in self.encode_batch([text])[0]]


@dataclass(frozen=True)
class TokenizerFiles:
    """Where a tokenizer is; another process loads the same one from it.

    Args:
        name: as it was asked for.
        paths: its files, in the order of `LAYOUTS`; none for bytes.
        end_of_text: the token that ends a document, or its id; None: the one that its library says, or one of
            `END_TOKENS`.
    """

    name: str
    paths: tuple[Path, ...] = ()
    end_of_text: str | int | None = None


def load_tokenizer(name: str, *, end_of_text: str | None = None, revision: str | None = None) -> Tokenizer:
    """A tokenizer by its name.

    Args:
        name: "bytes", a file (tokenizer.model, tokenizer.json), a folder of one of `LAYOUTS`, or a hub's name.
        end_of_text: see `TokenizerFiles`.
        revision: of the hub's repository.

    Raises:
        ConfigError: there is none, it is damaged, or it has no end_of_text.
    """
    return build_tokenizer(find_tokenizer(name, end_of_text=end_of_text, revision=revision))


def find_tokenizer(
    name: str, *, end_of_text: str | int | None = None, revision: str | None = None, reaches_hub: bool = True
) -> TokenizerFiles:
    """The files of a tokenizer, from the hub where it is none of this machine's.

    Args:
        name, end_of_text, revision: see `load_tokenizer` and `TokenizerFiles`.
        reaches_hub: False: of a hub's name the local cache is asked alone, and no network.

    Raises:
        TokenizerMissingError: there is none of this name.
        ConfigError: there is something else of this name.
    """
    files = TokenizerFiles(name, end_of_text=end_of_text)
    if name == BYTES:
        return files
    path = Path(name).expanduser()
    if path.is_dir():
        for layout in LAYOUTS:
            if all((path / file).is_file() for file in layout):
                return replace(files, paths=tuple(path / file for file in layout))
        raise ConfigError(f"tokenizer: got the folder {name!r}, expected one with {_layouts_text()}")
    if path.is_file():
        if path.suffix not in (".model", ".json"):
            raise ConfigError(f"tokenizer: got {name!r}, expected a .model, a .json, or a folder of both GPT-2 files")
        return replace(files, paths=(path,))
    if path.suffix in (".model", ".json", ".bpe") or path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise TokenizerMissingError(
            f"tokenizer: got {name!r}, expected a file or folder that there is, a hub's name, or {BYTES}"
        )
    paths = hub_files(name, LAYOUTS, revision) if reaches_hub else cached_files(name, LAYOUTS, revision)
    if paths is None and not reaches_hub:
        raise TokenizerMissingError(f"tokenizer: got {name!r}, expected a file or folder, or what the hub's cache has")
    if paths is None:
        raise ConfigError(f"tokenizer: got {name!r}, expected a repository with {_layouts_text()}")
    return replace(files, paths=paths)


def _layouts_text() -> str:
    return ", or ".join(" and ".join(layout) for layout in LAYOUTS)


def build_tokenizer(files: TokenizerFiles) -> Tokenizer:
    """The tokenizer of files from `find_tokenizer`. Raises ConfigError."""
    if not files.paths:
        return ByteTokenizer(files)
    return SentencePieceTokenizer(files) if files.paths[0].suffix == ".model" else JsonTokenizer(files)


def _facts(tokenizer: Tokenizer, files: TokenizerFiles, kind: str, vocab_size: int, end: int) -> TokenizerFacts:
    hashes = [file_sha256(path) for path in files.paths]
    return TokenizerFacts(
        name=files.name,
        kind=kind,
        sha256=hashes[0] if len(hashes) == 1 else json_sha256([kind, *hashes]),
        vocab_size=vocab_size,
        end_of_text=end,
        golden_ids=golden_ids(tokenizer),
    )


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and 256 for end_of_text: no file, and nothing that it cannot write."""

    END = 256

    def __init__(self, files: TokenizerFiles) -> None:
        if files.end_of_text not in (None, self.END):
            raise ConfigError(f"end_of_text: got {files.end_of_text!r}, expected null with tokenizer={BYTES}")
        self.facts = _facts(self, files, BYTES, self.END + 1, self.END)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one != self.END).decode("utf-8", errors="replace")


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer.model, by the sentencepiece library: others make other ids of the same file."""

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise TokenizerMissingError(
                f"tokenizer: {files.name} needs the sentencepiece library: pip install -e '.[text]'"
            ) from error
        (path,) = files.paths
        try:
            self._processor: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"tokenizer: got {path}, expected a SentencePiece model: it cannot be read") from error
        end = self._processor.eos_id()
        if isinstance(files.end_of_text, int):
            end = files.end_of_text
        elif files.end_of_text is not None:
            end = self._processor.piece_to_id(files.end_of_text)
        if end < 0 or (end == self._processor.unk_id()):
            raise ConfigError(
                f"end_of_text: got {files.end_of_text or 'null'}, expected a piece of {files.name} that ends a document"
            )
        self.facts = _facts(self, files, "sentencepiece", self._processor.get_piece_size(), end)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # One thread: the processes beside this one have the other cores.
        return self._processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(one) for one in ids if one != self.facts.end_of_text])


class JsonTokenizer(Tokenizer):
    """A tokenizer.json, or GPT-2's two files, by the tokenizers library."""

    def __init__(self, files: TokenizerFiles) -> None:
        # Read when the library first encodes: the processes beside this one have the other cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self._tokenizer = read_json(files.paths)
        except ImportError as error:
            raise TokenizerMissingError(
                f"tokenizer: {files.name} needs the tokenizers library: pip install -e '.[text]'"
            ) from error
        except Exception as error:
            # Its own errors have no class of their own.
            names = " and ".join(map(str, files.paths))
            raise ConfigError(f"tokenizer: got {names}, expected a tokenizer: {error}") from error
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        tokens = END_TOKENS if files.end_of_text is None else (str(files.end_of_text),)
        end = next((vocabulary[token] for token in tokens if token in vocabulary), None)
        if isinstance(files.end_of_text, int):
            end = files.end_of_text
        if end is None:
            raise ConfigError(f"end_of_text: got {', '.join(tokens)}, expected a token that {files.name} has")
        self.facts = _facts(self, files, "tokenizers", max(vocabulary.values()) + 1, end)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(one) for one in ids if one != self.facts.end_of_text]
        return self._tokenizer.decode(kept, skip_special_tokens=False)


def read_json(paths: tuple[Path, ...]) -> Any:
    """The tokenizers library's own, of a tokenizer.json or of GPT-2's two files."""
    from tokenizers import Tokenizer as Library
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    if len(paths) == 1:
        found = Library.from_file(str(paths[0]))
    else:
        vocabulary, merges = paths
        found = Library(BPE.from_file(str(vocabulary), str(merges)))
        found.pre_tokenizer = ByteLevel(add_prefix_space=False)
        found.decoder = ByteLevelDecoder()
    # A file may cut texts at a model's length without a word.
    found.no_truncation()
    found.no_padding()
    # "<|endoftext|>" within a text is text.
    found.encode_special_tokens = True
    return found
