"""What token shards say about themselves: manifest.json, its schema, its checksum, and who disagrees with it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert, key
from palimpsa.text.files import MANIFEST, FileFacts

FORMAT = "palimpsa token shards, 1"
# What one token is stored as, by the name in the manifest: raw, little-endian.
DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True)
class TokenizerFacts:
    """Which tokenizer made the ids.

    Args:
        name: as it was asked for: "bytes", a file's name, a hub's name.
        kind: the library that encodes, "sentencepiece", "tokenizers" or "bytes".
        sha256: over the tokenizer's files.
        vocab_size: ids are below it.
        end_of_text: the id that ends every document.
        golden_ids: of `golden.SENTENCES`, in their order; empty for shards that no text was made into.
    """

    name: str
    kind: str
    sha256: str
    vocab_size: int = key(minimum=1)
    end_of_text: int = key(minimum=0)
    golden_ids: list[list[int]] = key(factory=list)

    @property
    def dtype(self) -> str:
        """The smallest of `DTYPES` that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class Manifest:
    """manifest.json, but for its format and checksum.

    Args:
        dtype: of the shards, one of `DTYPES`.
        num_bytes: of the documents' text in UTF-8.
        shards: the files of tokens, in order; all but the last hold `tokens_per_shard` of them.
        document_ends, document_bytes: .npy files, int64 [num_documents].
        request: what was asked for, as far as it changes the content.
        source: where the text came from.
        licences: how many documents have each.
        versions: of the packages that made it.
        command: the command line that did.
    """

    dtype: str = key(choices=tuple(DTYPES))
    num_tokens: int = key(minimum=1)
    num_documents: int = key(minimum=1)
    num_bytes: int = key(minimum=0)
    tokens_per_shard: int = key(minimum=1)
    shards: list[FileFacts] = key(items=FileFacts)
    document_ends: FileFacts = key()
    document_bytes: FileFacts = key()
    tokenizer: TokenizerFacts = key()
    request: dict[str, Any] = key(factory=dict)
    source: dict[str, Any] = key(factory=dict)
    licences: dict[str, Any] = key(factory=dict)
    versions: dict[str, Any] = key(factory=dict)
    command: str = ""

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over what changes numbers: tokens, documents, dtype, tokenizer; not names or paths."""
        files = [*self.shards, self.document_ends, self.document_bytes]
        parts = [self.dtype, self.tokenizer.sha256, self.tokenizer.end_of_text, *(one.sha256 for one in files)]
        return json_sha256(parts)

    def to_json(self) -> str:
        """The content of manifest.json, its checksum included."""
        values = {"format": FORMAT, **asdict(self)}
        text = json.dumps({**values, "checksum": json_sha256(values)}, indent=2, ensure_ascii=False) + "\n"
        # A file's name that is no UTF-8 has halves of characters, which JSON has as \udce9.
        text = text.encode(errors="backslashreplace").decode()
        # A list of ids in a line.
        return re.sub(r"\[\n[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a folder of token shards.

    Raises:
        ConfigError: naming the file, where there is none, or it is damaged or of another format.
    """
    path = directory / MANIFEST
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: missing, expected token shards that scripts/prepare_text.py finished; the same command again "
            "goes on where it stopped"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}), expected the manifest of token shards"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: got text that is not JSON ({error}), expected a manifest") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else values
        raise ConfigError(f"{path}: got format {found!r}, expected {FORMAT!r}")
    checksum = values.pop("checksum", None)
    if checksum != json_sha256(values):
        raise ConfigError(f"{path}: was changed after it was written: it does not fit its own checksum")
    del values["format"]
    try:
        return convert(Manifest, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def json_sha256(values: Any) -> str:
    """SHA-256, in hex, of values that JSON has, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
