"""Local text for the tests of `text`, and its script in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from palimpsa.text.command import prepare_text_main

WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "not")


def texts(num: int, seed: int = 0) -> list[str]:
    """Documents of a few words up to a few thousand."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 3_000 if k % 7 else 30))) + f" {k} é" for k in range(num)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    lines = [json.dumps({"text": one, "source": f"s{k % 3}"}, ensure_ascii=False) for k, one in enumerate(documents)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path) -> Path:
    """300 documents, 2 MB of them."""
    return write_jsonl(tmp_path / "corpus.jsonl", texts(300))


@pytest.fixture
def run_script(capfd) -> Callable[..., tuple[int, str, str]]:
    """scripts/prepare_text.py in this process, with bytes and one worker: its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = prepare_text_main(["tokenizer=bytes", "num_workers=1", *map(str, words)])
        return code, *capfd.readouterr()

    return run


def content(directory: Path) -> dict[str, bytes]:
    """The files below a folder, but for the lock."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
