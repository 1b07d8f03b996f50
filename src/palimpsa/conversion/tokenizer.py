"""The tokenizer of a model, in the folder of the model: its own files, its golden ids, and transformers' form of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import ResultError
from palimpsa.text.golden import check_golden_ids
from palimpsa.text.manifest import TokenizerFacts
from palimpsa.text.tokenizers import (
    BYTES,
    Tokenizer,
    TokenizerFiles,
    TokenizerMissingError,
    build_tokenizer,
    find_tokenizer,
)

FACTS = "tokenizer_facts.json"
# What a folder of transformers may have of one, and what ours have beside it.
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt", FACTS),
)
# Of bytes there is no text that a tokenizers library knows: a name for the end, which no text has.
END_OF_BYTES = "<|endoftext|>"


def export_tokenizer(facts: TokenizerFacts, folder: Path, name: str | None = None) -> str:
    """Puts a tokenizer into a folder, where it is on this machine.

    Args:
        facts: of the one that the model was trained with.
        name: where it is now; None: where it was.

    Returns:
        a line that says what was done.

    Raises:
        ConfigError: for a tokenizer that makes other ids, or one that was named and is not there.
    """
    (folder / FACTS).write_text(json.dumps(asdict(facts), ensure_ascii=False), encoding="utf-8")
    if not facts.golden_ids:
        return "tokenizer: none, the model was trained on ids that no text was made into"
    try:
        files = find_tokenizer(name or facts.name, end_of_text=facts.end_of_text, reaches_hub=False)
        tokenizer = build_tokenizer(files)
    except TokenizerMissingError as error:
        if name is not None:
            raise
        return f"tokenizer: not copied ({error}); --tokenizer says where it is"
    check_golden_ids(facts, tokenizer)
    for path in files.paths:
        shutil.copyfile(path, folder / path.name)
    return _export_to_transformers(facts, files, folder)


def copy_tokenizer(source: Path, folder: Path) -> str:
    """Copies the files of a tokenizer from one folder to another; returns a line that says which.

    Raises:
        ConfigError: for a source that is no folder.
    """
    if not source.is_dir():
        raise ConfigError(f"--tokenizer: got {str(source)!r}, expected a folder with files of a tokenizer")
    found = [name for name in FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, folder / name)
    if not found:
        return "tokenizer: none there; --tokenizer FOLDER says where it is"
    return f"tokenizer: copied {', '.join(found)}"


def read_folder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that lies in a model's folder, held to the golden ids that lie there too.

    Raises:
        ConfigError: there is none, or it makes other ids; naming the file, for one that is damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        raise ConfigError(f"{path}: not there, expected what scripts/convert.py export says of a tokenizer")
    try:
        facts = convert(TokenizerFacts, read_json_object(path, "expected what is known of a tokenizer"))
    except ResultError as error:
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    name = BYTES if facts.kind == BYTES else str(folder)
    tokenizer = build_tokenizer(find_tokenizer(name, end_of_text=facts.end_of_text, reaches_hub=False))
    check_golden_ids(facts, tokenizer)
    return tokenizer


def _export_to_transformers(facts: TokenizerFacts, files: TokenizerFiles, folder: Path) -> str:
    """Has AutoTokenizer read it, where it makes the same ids."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    made = _byte_tokenizer(facts) if not files.paths else _json_tokenizer(files)
    end = made.id_to_token(facts.end_of_text)
    # What looks like a special token in a text is text.
    library = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=end, split_special_tokens=True)
    library.save_pretrained(folder)
    again: Any = AutoTokenizer.from_pretrained(folder)
    try:
        check_golden_ids(facts, _Plain(again))
        found = again.eos_token_id
        if found != facts.end_of_text:
            raise ConfigError(
                f"tokenizer: got {again.eos_token_id} for the end of a text, expected {facts.end_of_text}"
            )
    except ConfigError as error:
        own = {path.name for path in files.paths}
        for file in {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} - own:
            (folder / file).unlink(missing_ok=True)
        return f"tokenizer: copied, for palimpsa alone: as transformers reads it, it makes other ids ({error})"
    return "tokenizer: copied, and AutoTokenizer makes the same ids of it"


class _Plain:
    """A tokenizer of transformers as `golden` asks one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _byte_tokenizer(facts: TokenizerFacts) -> Any:
    """Each byte by its own number: byte-level BPE that never merges."""
    from tokenizers import Tokenizer as Library
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    # GPT-2's spelling of bytes: printable ones by themselves, the others from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    made = Library(BPE({spelling[byte]: byte for byte in range(256)} | {END_OF_BYTES: facts.end_of_text}, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = ByteLevelDecoder()
    return made


def _json_tokenizer(files: TokenizerFiles) -> Any:
    from palimpsa.text.tokenizers import read_json

    return read_json(files.paths) if files.paths[0].suffix != ".model" else _of_sentencepiece(files.paths[0])


def _of_sentencepiece(path: Path) -> Any:
    """A SentencePiece BPE model in the tokenizers library: pairs are merged in the order of their pieces' scores.

    transformers' own conversion merges them in the order of ids, which of runs of spaces makes other ids.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, normalizers
    from tokenizers.models import BPE

    model: Any = SentencePieceProcessor(model_file=str(path))
    pieces = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    plain = {
        piece: i
        for piece, i in pieces.items()
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i) or model.is_unused(i))
    }
    merges = [
        (-model.get_score(i), plain[piece[:k]], plain[piece[k:]], piece[:k], piece[k:])
        for piece, i in plain.items()
        for k in range(1, len(piece))
        if piece[:k] in plain and piece[k:] in plain
    ]
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    unknown = model.id_to_piece(model.unk_id())
    made = Library(BPE(pieces, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made
