"""How likely a model finds tokens: requests in batches, whatever the model, and whatever the size of a batch."""

# B rows, T time, V vocabulary, n targets of a request, N targets of a batch

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.models.replays import Replays
from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.loss import row_losses

# On a GPU rows are padded to a multiple of it: kernels are compiled for few shapes.
LENGTH_MULTIPLE = 64
# Of logits that exist at once: of 32,000 words in bf16 a quarter of a gigabyte.
TARGETS_AT_A_TIME = 4_096


class Request(NamedTuple):
    """tokens: the last `num_targets` of them, at least one and not all, are predicted from what is before each."""

    tokens: Sequence[int]
    num_targets: int


class Score(NamedTuple):
    """losses: [n] float64, nats of each target. is_greedy: each target is the most likely token at its place."""

    losses: np.ndarray
    is_greedy: bool

    @property
    def log_likelihood(self) -> float:
        """Of all targets together, nats."""
        return -float(self.losses.sum())


class Network(ABC):
    """A causal language model as evaluation sees it.

    Attributes:
        vocab_size: V.
        device: where it computes.
        num_parameters: trained ones.
        max_tokens: that it can read, where it has learnt an embedding of each position; None: any number.
    """

    vocab_size: int
    device: torch.device
    num_parameters: int
    max_tokens: int | None = None

    @abstractmethod
    def logits_at(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Callable[[slice], Tensor]:
        """Logits of chosen places of a batch, some at a time.

        Args:
            tokens: [B, T] int64 in [0, V); what is padded stands on the right.
            rows, positions: [N] int64, the places.

        Returns:
            a function from a slice of the N places to their logits, [places, V].
        """


class NativeNetwork(Network):
    """A `LanguageModel`, whose logits are computed at the places that are asked for alone.

    On a GPU its kernels are compiled in a thread of their own from the beginning, while its owner has other things to
    do; the first batch waits for them.

    Args:
        model: on its device, in evaluation mode.
        dtype: of products: float32, or bfloat16 beside weights in float32, as in training.
    """

    def __init__(self, model: LanguageModel, dtype: torch.dtype = torch.float32) -> None:
        self._model = model
        self._dtype = dtype
        self.vocab_size = model.embedding.weight.shape[0]
        self.device = model.embedding.weight.device
        self.num_parameters = model.num_parameters
        self._hidden = Replays(model.hidden)
        # Python waits for it at its end: torch aborts a process that ends within its calls.
        self._compiling = Thread(target=self._compile)
        if self.device.type == "cuda":
            self._compiling.start()

    @torch.no_grad()
    def _compile(self) -> None:
        # What fails here fails for the first batch, too, and is told there.
        with contextlib.suppress(Exception), _products_in(self._dtype, self.device):
            self._model.logits(
                self._model.hidden(torch.zeros(1, LENGTH_MULTIPLE, dtype=torch.int64, device=self.device))
            )

    def logits_at(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Callable[[slice], Tensor]:
        if self.device.type == "cuda":
            self._compiling.join()
        with _products_in(self._dtype, self.device):
            hidden = self._hidden(tokens)[rows, positions]

        def logits(places: slice) -> Tensor:
            with _products_in(self._dtype, self.device):
                return self._model.logits(hidden[places])

        return logits


class TransformersNetwork(Network):
    """A causal model of the transformers library, whose logits are computed at the places that are asked for alone.

    Args:
        model: on its device, in evaluation mode: `model(input_ids=tokens).logits` are what its output embedding makes
            of each place, or something of each of these numbers.
        dtype: see `NativeNetwork`.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        self._model = model
        self._dtype = dtype
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        self.device = model.device
        self.num_parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
        self.max_tokens = _learnt_positions(model)

    def logits_at(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Callable[[slice], Tensor]:
        def choose(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *others = arguments
            return hidden[rows, positions][None], *others

        # Of 32,000 words the head costs as much as the blocks do, and most places have no target.
        hook = self._model.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            with _products_in(self._dtype, self.device):
                # A cache would be made and thrown away.
                logits = self._model(input_ids=tokens, use_cache=False).logits[0]
        finally:
            hook.remove()
        return lambda places: logits[places]


def _learnt_positions(model: Any) -> int | None:
    """How many positions a model has an embedding of, as GPT-2's; None where it has none, as Llama."""
    positions = getattr(model.config, "max_position_embeddings", None)
    words = model.get_input_embeddings()
    others = [one for one in model.modules() if isinstance(one, nn.Embedding) and one is not words]
    # Some have a few rows more, for padding.
    is_learnt = positions is not None and any(0 <= one.num_embeddings - positions <= 2 for one in others)
    return positions if is_learnt else None


class TooLongError(ConfigError):
    """A model has no position for a token that it should read."""


def _products_in(dtype: torch.dtype, device: torch.device) -> Any:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class Scorer:
    """Scores requests with a network.

    Requests are sorted by length, so that little is padded, and padded on the right, which a causal model does not
    see: a score depends on the request alone, but for rounding. Requests that differ in their last token alone are one
    row.

    Args:
        network: that predicts.
        batch_size: rows at a time.
        report: called with how many rows are done, and of how many.
    """

    def __init__(
        self, network: Network, batch_size: int, report: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.network = network
        self.batch_size = batch_size
        self._report = report

    @torch.no_grad()
    def score(self, requests: Sequence[Request]) -> list[Score]:
        """The score of each request, in their order.

        Raises:
            ValueError: for a request without a target, or whose first token would be one; for a token beyond the
                vocabulary.
            TooLongError: for a request of more tokens than the model can read.
            ConfigError: where a batch does not fit into the GPU's memory, with the size that does.
        """
        by_input: dict[tuple[int, ...], list[int]] = {}
        for place, request in enumerate(requests):
            self._check(request)
            by_input.setdefault(tuple(request.tokens[:-1]), []).append(place)
        inputs = sorted(by_input, key=len, reverse=True)
        scores: list[Score | None] = [None] * len(requests)
        for start in range(0, len(inputs), self.batch_size):
            batch = inputs[start : start + self.batch_size]
            places = [(row, place) for row, one in enumerate(batch) for place in by_input[one]]
            found = self._score_or_explain(batch, [(row, requests[place]) for row, place in places])
            for (_, place), score in zip(places, found, strict=True):
                scores[place] = score
            self._report(start + len(batch), len(inputs))
        return [score for score in scores if score is not None]

    def _check(self, request: Request) -> None:
        length, vocab_size, most = len(request.tokens), self.network.vocab_size, self.network.max_tokens
        if most is not None and length > most + 1:
            raise TooLongError(
                f"checkpoint: the model reads at most {most} tokens, whose positions it has learnt, got {length - 1}; "
                "evaluation.max_length, and sizes and lengths of long_range, say how many"
            )
        if not 0 < request.num_targets < length:
            raise ValueError(
                f"num_targets: got {request.num_targets} of {length} tokens, expected at least one and fewer than all"
            )
        if not (min(request.tokens) >= 0 and max(request.tokens) < vocab_size):
            raise ValueError(
                f"tokens: got {min(request.tokens)} to {max(request.tokens)}, expected ids in [0, {vocab_size})"
            )

    def _score_or_explain(self, inputs: Sequence[tuple[int, ...]], requests: list[tuple[int, Request]]) -> list[Score]:
        """`_score_batch`; where memory is too small, the error says which batch fits."""
        size = len(inputs)
        try:
            return self._score_batch(inputs, requests)
        except torch.OutOfMemoryError:
            # Tried again below: here the error still holds what was allocated.
            pass
        while size > 1:
            size //= 2
            try:
                self._score_batch(inputs[:size], [(row, one) for row, one in requests if row < size])
            except torch.OutOfMemoryError:
                continue
            raise ConfigError(
                f"evaluation.batch_size: got {self.batch_size}, too large for the memory of {self.network.device} with "
                f"rows of {len(inputs[0])} tokens; {size} fits"
            )
        raise ConfigError(
            f"evaluation.max_length: a row of {len(inputs[0])} tokens does not fit into the memory of "
            f"{self.network.device} even alone; expected a smaller one, or a larger GPU"
        )

    def _score_batch(self, inputs: Sequence[tuple[int, ...]], requests: list[tuple[int, Request]]) -> list[Score]:
        """Args: inputs: the rows, the longest first. requests: each with its row."""
        multiple = LENGTH_MULTIPLE if self.network.device.type == "cuda" else 1
        length = -(-len(inputs[0]) // multiple) * multiple
        tokens = torch.zeros(len(inputs), length, dtype=torch.int64)
        for row, one in enumerate(inputs):
            tokens[row, : len(one)] = torch.tensor(one)
        counts = [request.num_targets for _, request in requests]
        rows = torch.tensor([row for row, _ in requests]).repeat_interleave(torch.tensor(counts))
        # The last target is predicted at the last token of the row.
        ends = [len(request.tokens) - 1 for _, request in requests]
        positions = torch.cat([torch.arange(end - n, end) for end, n in zip(ends, counts, strict=True)])
        labels = torch.cat([torch.tensor(list(request.tokens[-request.num_targets :])) for _, request in requests])
        device = self.network.device
        logits_of = self.network.logits_at(tokens.to(device), rows.to(device), positions.to(device))
        losses, is_largest = [], []
        for start in range(0, len(labels), TARGETS_AT_A_TIME):
            places = slice(start, start + TARGETS_AT_A_TIME)
            logits, wanted = logits_of(places), labels[places].to(device)
            losses.append(row_losses(logits, wanted).double().cpu())
            is_largest.append((logits.argmax(-1) == wanted).cpu())
        split_losses, split_largest = torch.cat(losses).split(counts), torch.cat(is_largest).split(counts)
        return [
            Score(one.numpy(), bool(largest.all())) for one, largest in zip(split_losses, split_largest, strict=True)
        ]
