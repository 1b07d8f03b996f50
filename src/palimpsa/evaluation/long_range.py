"""The long-range measures of a model, as a config asks for them, and the documents that they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.evaluation.models.checkpoints import EvaluatedModel
from palimpsa.evaluation.models.scoring import Scorer, TooLongError
from palimpsa.evaluation.perplexity import (
    Point,
    document_losses,
    loss_by_position,
    rare_bigrams_by_age,
    target_log_likelihood,
)
from palimpsa.evaluation.recall import MAX_BOOK_SIZE, nats_gained, phonebook, repeat_copy
from palimpsa.evaluation.schema import LongRangeConfig
from palimpsa.evaluation.statistics import TaskResult, check_measured
from palimpsa.evaluation.unfinished import Unfinished, nan_where_null, plain_numbers
from palimpsa.tasks.data_digests import split_folder
from palimpsa.text.documents import FileSource
from palimpsa.text.manifest import read_manifest
from palimpsa.text.records import Fields, parse
from palimpsa.text.shards import TokenShards

# In words, as tables have them.
MEASURES = {
    "loss_by_position": "nats a token by the tokens before it",
    "rare_bigrams": "nats of the second token of a rare bigram by the tokens since it stood there last",
    "lambada_target": "log-likelihood of LAMBADA's last word, nats",
    "phonebook": "nats a number gained over a shuffled phonebook, by its entries",
    "repeat_copy": "nats a token gained over a shuffled text, by its tokens",
}
# What reads documents.
OF_DOCUMENTS = ("loss_by_position", "rare_bigrams", "repeat_copy")


def check_measures(config: LongRangeConfig) -> None:
    """Raises ConfigError for an unknown measure, with the nearest known name, a size out of range, or either twice."""
    for name in config.measures:
        if name not in MEASURES:
            raise ConfigError(
                f"long_range.measures: got {name!r}, expected some of {', '.join(MEASURES)}{nearest(name, MEASURES)}"
            )
    for key, sizes, highest in (
        ("book_sizes", config.book_sizes, MAX_BOOK_SIZE),
        ("copy_lengths", config.copy_lengths, 2**20),
    ):
        for size in sizes:
            if not 2 <= size <= highest:
                raise ConfigError(f"long_range.{key}: got {size}, expected 2 to {highest}")
    for key in ("measures", "book_sizes", "copy_lengths"):
        values = getattr(config, key)
        if len(set(values)) < len(values):
            raise ConfigError(f"long_range.{key}: got {', '.join(map(str, values))}, expected each once")


class LongRange:
    """Measures a model.

    Args:
        model: that is measured.
        scorer: of its network.
        config: which measures, of what.

    Attributes:
        documents_name: of the documents that are read; None where none are known.
        notes: what cannot be measured, and why.
    """

    def __init__(self, model: EvaluatedModel, scorer: Scorer, config: LongRangeConfig) -> None:
        self._model = model
        self._scorer = scorer
        self._config = config
        self.documents_name = config.documents
        if config.documents is None and model.data is not None:
            self.documents_name = str(split_folder(model.data, "validation"))
        self.notes: list[str] = []
        self._documents: np.ndarray | None = None
        self._losses: np.ndarray | None = None

    def run(
        self,
        lambada: TaskResult | None,
        unfinished: Unfinished | None = None,
        report: Callable[[str, list[Point], bool], None] = lambda name, points, was_known: None,
    ) -> dict[str, list[Point]]:
        """The points of each measure that is asked for, and can be measured.

        Args:
            lambada: the result of that task.
            unfinished: where the points of each measure are kept, and found again.
            report: called with each measure that is done, and whether it was found.

        Raises:
            ConfigError: for documents that are missing, damaged or too short, or points that are no numbers.
        """
        measures = {
            "loss_by_position": lambda: loss_by_position(self.document_losses()),
            "rare_bigrams": self._rare_bigrams,
            "phonebook": self._phonebook,
            "repeat_copy": self._repeat_copy,
        }
        if lambada is not None:
            perplexity = lambada.metrics["perplexity"]
            measures["lambada_target"] = lambda: [target_log_likelihood(perplexity, lambada.num_items)]
        found = {}
        for name in self._config.measures:
            missing = self._missing(name, has_lambada=lambada is not None)
            if missing is not None:
                self.notes.append(f"{name} is not measured: {missing}")
                continue
            # That one follows from a task's result, which is kept already.
            kept = unfinished if name != "lambada_target" else None
            follows_from = self._follows_from(name) if kept is not None else {}
            known = None if kept is None else kept.find(name, follows_from)
            if known is not None:
                found[name] = [Point(**{**one, "stderr": nan_where_null(one["stderr"])}) for one in known["points"]]
                self.notes += known["notes"]
            else:
                num_notes = len(self.notes)
                try:
                    found[name] = measures[name]()
                except TooLongError as error:
                    self.notes.append(f"{name} is not measured: {error}")
                    continue
                for one in found[name]:
                    check_measured(self._model.name, f"{name} at {one.at}", one.value, one.stderr)
                if kept is not None:
                    points = [plain_numbers(one._asdict()) for one in found[name]]
                    kept.keep(name, follows_from, {"points": points, "notes": self.notes[num_notes:]})
            report(name, found[name], known is not None)
        return found

    def _follows_from(self, name: str) -> dict[str, Any]:
        """What the points of a measure follow from, beside the model."""
        settings = {key: value for key, value in asdict(self._config).items() if key not in ("measures", "documents")}
        facts: dict[str, Any] = {"measure": name, "settings": settings}
        if name in OF_DOCUMENTS:
            tokens = self.documents()
            facts["documents"] = [list(tokens.shape), hashlib.sha256(tokens.tobytes()).hexdigest()]
        if name == "rare_bigrams":
            facts["training_data"] = read_manifest(split_folder(str(self._model.data), "train")).digest
        return facts

    def _missing(self, name: str, *, has_lambada: bool) -> str | None:
        """What a measure lacks."""
        if name == "lambada_target" and not has_lambada:
            return "lambada_openai is not among evaluation.tasks"
        if name in OF_DOCUMENTS and self.documents_name is None:
            return "no documents are known; training_data=FOLDER or long_range.documents=FILE has them"
        if name == "rare_bigrams" and self._model.data is None:
            return "what is rare is not known; training_data=FOLDER has the text that it was trained on"
        return None

    def _rare_bigrams(self) -> list[Point]:
        assert self._model.data is not None
        training = TokenShards.open(split_folder(self._model.data, "train"))
        losses = self.document_losses()
        points = rare_bigrams_by_age(self.documents(), losses, training, max_count=self._config.max_count)
        if not points:
            self.notes.append(
                f"rare_bigrams: none that {training.directory} has at most {self._config.max_count} times stands twice "
                f"in a document of {self.documents_name}"
            )
        return points

    def _phonebook(self) -> list[Point]:
        return [
            nats_gained(
                self._scorer,
                [phonebook(self._model.codec, size, one) for one in self._generators(0, size)],
                str(size),
                per_token=False,
            )
            for size in self._config.book_sizes
        ]

    def _repeat_copy(self) -> list[Point]:
        tokens = self.documents()
        alphabet = np.setdiff1d(tokens, [self._model.codec.end_of_text])
        return [
            nats_gained(
                self._scorer,
                [repeat_copy(alphabet, length, one) for one in self._generators(1, length)],
                str(length),
                per_token=True,
            )
            for length in self._config.copy_lengths
        ]

    def _generators(self, measure: int, size: int) -> list[np.random.Generator]:
        return [np.random.default_rng((self._config.seed, measure, size, k)) for k in range(self._config.num_books)]

    def document_losses(self) -> np.ndarray:
        """[D, num_tokens - 1] nats of every token of `documents` but the first of each. Raises as `run` does."""
        if self._losses is None:
            self._losses = document_losses(self._scorer, self.documents())
        return self._losses

    def documents(self) -> np.ndarray:
        """[D, num_tokens] int64, the first tokens of each document that is long enough.

        Raises:
            ConfigError: naming the file, where there is none, or no document of that length.
        """
        if self._documents is None:
            length, limit = self._config.num_tokens, self._config.max_documents
            kept, longest = [], 0
            for tokens in self._read():
                longest = max(longest, len(tokens))
                if len(tokens) >= length:
                    kept.append(np.asarray(tokens[:length], np.int64))
                if limit is not None and len(kept) == limit:
                    break
            if not kept:
                raise ConfigError(
                    f"long_range.num_tokens: got {length}, expected at most {longest}, the length of the longest "
                    f"document of {self.documents_name}; long_range.documents=FILE has others"
                )
            self._documents = np.stack(kept)
        return self._documents

    def _read(self) -> Iterator[Sequence[int] | np.ndarray]:
        if self._config.documents is None:
            shards = TokenShards.open(str(self.documents_name))
            start = 0
            for stop in shards.document_ends.tolist():
                yield shards.tokens(start, stop)
                start = stop
            return
        fields = Fields("text", None, "")
        for batch in FileSource([self._config.documents], fields, key="long_range.documents").batches(None):
            for document in parse(batch, fields):
                yield self._model.codec.encode(document.text, add_special_tokens=False)
