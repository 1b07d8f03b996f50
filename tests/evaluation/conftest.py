"""For the tests of `evaluation`: no network, records of every task, models whose answers are known."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Real records, where they are: eval/NAME.jsonl below it.
DATA_VARIABLE = "PALIMPSA_TEST_DATA"

RECORDS: dict[str, list[dict]] = {
    "wikitext": [
        {"page": " = A page = \n \n It was built in 1 @,@ 900 , and stood . " * 4},
        {"page": " = Another = \n \n Nobody knows why . "},
        {"page": " = Last = \n \n A third one , longer than the second one is . "},
    ],
    "lambada_openai": [
        {"text": "He gave it to her, and she took it from him"},
        {"text": "The dog saw the cat, and the cat saw the dog"},
        {"text": "What he said was what he meant"},
        {"text": "They came in the night and left in the morning"},
    ],
    "piqa": [
        {"goal": "Open a door", "sol1": "Turn its handle.", "sol2": "Turn its wall around.", "label": 0},
        {"goal": "Boil water", "sol1": "Put it on ice.", "sol2": "Put it on a stove.", "label": 1},
        {"goal": "Read", "sol1": "Look at a book.", "sol2": "Eat it.", "label": 0},
    ],
    "hellaswag": [
        {
            "query": "Cooking: A man",
            "choices": ["eats.", "flies away.", "is a pan.", "stirs a pot of soup."],
            "label": 3,
        },
        {"query": "Running: A girl", "choices": ["runs.", "sleeps on.", "is round.", "boils."], "label": 0},
        {"query": "Diving: She", "choices": ["burns.", "jumps into it.", "is.", "reads out a book."], "label": 1},
    ],
    "winogrande": [
        {"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        {"sentence": "Ann told Eve that _ would go home.", "option1": "Ann", "option2": "Eve", "answer": "1"},
        {"sentence": "The cup broke the plate as _ fell.", "option1": "cup", "option2": "plate", "answer": "1"},
    ],
    "arc_easy": [
        {"question": "What is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "What is wet?", "choices": {"text": ["water", "sand"], "label": ["A", "B"]}, "answerKey": "A"},
    ],
    "arc_challenge": [
        {"question": "Why?", "choices": {"text": ["because of it", "no"], "label": ["1", "2"]}, "answerKey": "1"},
        {"question": "How?", "choices": {"text": ["so", "not at all"], "label": ["1", "2"]}, "answerKey": "1"},
    ],
    "social_iqa": [
        {
            **{"context": "Kai fell.", "question": "How does Kai feel?", "label": "2"},
            **{"answerA": "glad", "answerB": "hurt", "answerC": "as if in a boat"},
        },
        {
            **{"context": "Kai won.", "question": "What does Kai do now?", "label": "1"},
            **{"answerA": "cheer", "answerB": "lose it all", "answerC": "weep"},
        },
    ],
    "boolq": [
        {"passage": "Fire is hot.", "question": "is fire hot", "label": 1},
        {"passage": "Ice is cold.", "question": "is ice hot", "label": 0},
        {"passage": "Sand is dry.", "question": "is sand wet", "label": 0},
    ],
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> None:
    """What opens a connection fails, and says so."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("a test may not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def task_data(tmp_path_factory) -> Path:
    """A folder with a few records of every task."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, records in RECORDS.items():
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def real_task_data() -> Path:
    """The real records, where this machine has them."""
    folder = Path(os.environ.get(DATA_VARIABLE, str(ROOT.parent / "shared/data"))) / "eval"
    if not folder.is_dir():
        pytest.skip(f"needs the tasks' records in {folder}; {DATA_VARIABLE}=FOLDER says where they are")
    return folder


def uniform(vocab_size: int) -> Callable[[Sequence[int]], np.ndarray]:
    """Every token is as likely as any other."""
    return lambda before: np.full(vocab_size, -np.log(vocab_size))


def copying(vocab_size: int, *, likely: float, width: int = 1) -> Callable[[Sequence[int]], np.ndarray]:
    """What followed the last `width` tokens when they stood there last is `likely`; all else is equal."""

    def predict(before: Sequence[int]) -> np.ndarray:
        end = list(before[-width:])
        for place in range(len(before) - width - 1, -1, -1):
            if list(before[place : place + width]) == end:
                found = np.full(vocab_size, np.log((1 - likely) / (vocab_size - 1)))
                found[before[place + width]] = np.log(likely)
                return found
        return np.full(vocab_size, -np.log(vocab_size))

    return predict


def bigram(table: np.ndarray) -> Callable[[Sequence[int]], np.ndarray]:
    """Row i of table [V, V] has the log-probabilities of what follows token i."""
    return lambda before: table[before[-1]]


@pytest.fixture(scope="session")
def known_network():
    """A network from a rule, tokens before -> log-probabilities [V]: `known_network(uniform(5), 5)`."""
    # Imported late: what evaluates imports Triton, for which the tests of the kernels choose its interpreter first.
    import torch

    from palimpsa.evaluation.models.scoring import Network

    class KnownNetwork(Network):
        def __init__(self, rule: Callable[[Sequence[int]], np.ndarray], vocab_size: int) -> None:
            self.rule, self.vocab_size = rule, vocab_size
            self.device, self.num_parameters = torch.device("cpu"), 0
            self.batches: list[tuple[int, ...]] = []

        def logits_at(self, tokens, rows, positions):
            self.batches.append(tuple(tokens.shape))
            found = [
                self.rule(tokens[row, : place + 1].tolist())
                for row, place in zip(rows.tolist(), positions.tolist(), strict=True)
            ]
            # In float64, as the expected numbers are.
            logits = torch.from_numpy(np.stack(found))
            return lambda places: logits[places]

    return KnownNetwork


@pytest.fixture(scope="session")
def byte_codec():
    """Bytes, and 256 for the end of a text."""
    from palimpsa.evaluation.models.codecs import OwnCodec
    from palimpsa.text.tokenizers import load_tokenizer

    return OwnCodec(load_tokenizer("bytes"))


@pytest.fixture(scope="session")
def rules():
    """The rules of models whose answers are known, by name."""
    return {"uniform": uniform, "copying": copying, "bigram": bigram}
