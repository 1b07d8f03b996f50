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

RUN = (
    *("task=commonsense", "model=lm/palimpsa_d_tiny", "model.d_model=32", "model.num_layers=1"),
    *("model.channel_width=32", "task.context=32", "task.tokens_per_step=128", "task.num_steps=2"),
    *("task.validation_every=2", "task.validation_tokens=256", "trainer.log_every=2", "trainer.probe_every=8"),
    *("trainer.progress_bar=false", "logger=csv"),
)
SMALL = (
    *("device=cpu", "evaluation.limit=2", "long_range.num_tokens=64", "long_range.num_books=2"),
    *("long_range.book_sizes=[2]", "long_range.copy_lengths=[4]", "long_range.max_count=100_000"),
)

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
        # More than the models of the tests read, with a context that has to be cut.
        {"text": "It rained for a week, and the river rose. " * 4 + "When it fell again, the bridge was gone"},
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


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """The directory of a run of two steps on the shipped text, as bytes."""
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed
    from palimpsa.text.command import prepare_text_main
    from palimpsa.training.run import run

    folder = tmp_path_factory.mktemp("run")
    assert prepare_text_main(["source=sample", "tokenizer=bytes", "num_workers=1", f"directory={folder}/data"]) == 0
    config = typed(compose_config([*RUN, f"task.data={folder}/data", f"results_dir={folder}"]))
    assert run(config)["status"] == "finished"
    return Path(config.run_dir)


@pytest.fixture(scope="session")
def evaluation_words() -> tuple[str, ...]:
    """The command line of an evaluation of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def evaluate(tmp_path_factory, run_folder):
    """The script in this process, on the run: exit code; results go below the folder that it is given."""

    def evaluate(folder, *words: str) -> int:
        from palimpsa.evaluation.command import evaluate_main

        return evaluate_main([f"checkpoint={run_folder}", f"results_dir={folder}", *SMALL, *words])

    return evaluate


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, task_data, evaluate):
    """The results folder of an evaluation of all tasks and measures."""
    folder = tmp_path_factory.mktemp("results")
    assert evaluate(folder, f"evaluation.data_dir={task_data}") == 0
    return folder
