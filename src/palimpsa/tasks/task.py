"""The seam between what a run trains on and the loop that trains: the loop knows `Task` and no task.

A run walks through a task's stages. Batches are pure functions of (seed, stage, step): a resumed run needs to know its
stage and step alone, and several processes share a step by taking a part of its examples each.
"""

# B examples of one process's share of a step, T tokens of a context

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

# A named tuple of tensors: see `Task.count_examples`.
BatchT = TypeVar("BatchT", bound=tuple[Tensor, ...])
StageT = TypeVar("StageT", bound="Stage")
# Metrics by name; fractions, nats, as the task says.
Metrics = dict[str, float]
# Makes a function of tensors on the device cheaper to call again: CUDA graphs, see `training.cuda_graph`.
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]

SPLITS = ("train", "validation", "test")


class Loss(NamedTuple):
    """mean: a scalar in fp32 or fp64, nats, for autograd to follow; num_targets: the predictions that it is over.

    Of one share of a step, `mean` is such that its average over all shares is the sum over the step's targets divided
    by their number, however they are spread.
    """

    mean: Tensor
    num_targets: int


class Bindings(NamedTuple):
    """Contexts in which queries ask for what was stored before.

    tokens [B, T] int64; queries [B, n] int64, where they stand; stored [B, n, 2] int64, where the key and the value
    stand that each asks for; labels [B, n] int64, what is right there.
    """

    tokens: Tensor
    stored: Tensor
    queries: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Stage:
    """A part of a run with a budget of its own; weights are carried from one to the next.

    index: its place, from 0. max_steps: optimiser steps at most. batch_size: examples a step, over all processes.
    context: tokens an example. is_tested: whether the test split is looked at when it ends.
    """

    index: int
    max_steps: int
    batch_size: int
    context: int
    is_tested: bool

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context

    @property
    def label(self) -> str:
        """As progress and tables call it."""
        return f"L {self.context}"

    @property
    def ignorance_loss(self) -> float | None:
        """Nats of a model that has learnt nothing of the context, where there is such a number."""
        return None


class Task(ABC, Generic[StageT, BatchT]):
    """What a run trains on.

    Attributes:
        stages: in order.
        seed: of the run's data.
        capture: makes evaluations cheaper to repeat; None: as they stand.
        metric: the one of `evaluate` that ends a stage and that figures show.
        capturable: whether `make_batch` and `loss` compute on the device alone, so that CUDA graphs can replay them.
        reports_costs: whether curves show what steps cost: waiting for batches, share of the peak, memory; and the
            norm of the gradient.
        keeps_final_weights: whether a checkpoint is written after the last step too.
        asks_queries: whether a batch has inputs, query_positions, labels and ages(), so that answers count one by one.
        notes: what a person should know before a run starts, a line each.
        steps_per_epoch: optimiser steps through a training set that is fixed; None: it is not.
    """

    metric: ClassVar[str]
    capturable: ClassVar[bool] = False
    reports_costs: ClassVar[bool] = False
    keeps_final_weights: ClassVar[bool] = False
    asks_queries: ClassVar[bool] = False
    stages: Sequence[StageT]
    seed: int
    capture: Capture | None = None
    notes: Sequence[str] = ()
    steps_per_epoch: int | None = None

    @abstractmethod
    def train_examples(self, stage: StageT, step: int, device: torch.device) -> Tensor:
        """[batch_size] int64, or fewer at an epoch's end: which examples a step (0-based in its stage) trains on."""

    def step_sizes(self, stage: StageT) -> set[int]:
        """The numbers of examples that a step of a stage may have: fewer than batch_size at an epoch's end."""
        return {stage.batch_size}

    @abstractmethod
    def make_batch(self, stage: StageT, split: str, examples: Tensor) -> BatchT:
        """The batch of examples [B] int64 of a split, on their device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: BatchT) -> Loss:
        """The loss of a model on a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str, stage: StageT, device: torch.device) -> Metrics:
        """Metrics of a model on a split of a stage, the same on every process."""

    @abstractmethod
    def is_solved(self, validation: Metrics) -> bool:
        """Whether these metrics end a stage before its cap."""

    @abstractmethod
    def stage_result(self, stage: StageT, validation: Metrics, test: Metrics | None) -> dict[str, Any]:
        """What result.json keeps of a stage beside its index, steps and end, as plain values."""

    @abstractmethod
    def headline(self, result: dict[str, Any]) -> str:
        """A few words about a stage, of its `stage_result`; empty where it was not tested."""

    @abstractmethod
    def contexts(self, stage: StageT, num_examples: int, device: torch.device) -> Tensor:
        """[num_examples, T] int64 tokens of the validation split, for the memory probe; fewer where it is short."""

    def bindings(self, stage: StageT, split: str, examples: Tensor) -> Bindings | None:
        """What the queries of examples [B] int64 ask for; None for a task whose answers were not stored as pairs."""
        return None

    def count_examples(self, batch: BatchT) -> int:
        """How many examples are in a batch: the length of the first axis of its tensors, unless a task packs them."""
        return len(batch[0])

    def describe_batch(self, stage: StageT, step: int) -> str:
        """In words, where the batch of a step (0-based in its stage) comes from, so that a person can look at it."""
        return f"that of seed {self.seed}, stage {stage.index}, step {step}"

    def release(self) -> None:
        """Lets go of what was captured or prepared: memory that a sweep's next run in this process may want."""

    def batch(self, stage: StageT, step: int, device: torch.device, *, rank: int = 0, num_ranks: int = 1) -> BatchT:
        """The batch of a step, or one process's share of it: a pure function of (seed, stage, step, rank)."""
        examples = self.train_examples(stage, step, device)
        return self.make_batch(stage, "train", share_of(examples, rank, num_ranks))

    @property
    def max_steps(self) -> int:
        """Optimiser steps of all stages at most."""
        return sum(stage.max_steps for stage in self.stages)


def share_of(examples: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The `rank`-th of `num_ranks` equal parts of examples [B].

    Raises:
        ValueError: they do not divide evenly: a mean over processes would not be that over examples.
    """
    if len(examples) % num_ranks:
        raise ValueError(f"num_ranks: got {num_ranks}, expected a divisor of the step's {len(examples)} examples")
    size = len(examples) // num_ranks
    return examples[rank * size : (rank + 1) * size]
