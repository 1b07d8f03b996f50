"""The stages of an MQAR run and the training examples at each of their steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import MQARConfig
from palimpsa.tasks.mqar_examples import InterferenceSpec, MQARSpec, epoch_order
from palimpsa.tasks.task import Stage


@dataclass(frozen=True)
class MQARStage(Stage):
    """One stage: its difficulty and budget.

    spec: the difficulty. num_train_examples: size of a fixed training set, gone through in a new order every epoch;
    None: fresh samples.
    """

    spec: MQARSpec
    num_train_examples: int | None = None

    @property
    def ignorance_loss(self) -> float:
        return self.spec.plateau_loss

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps through the fixed training set; None: there is none."""
        return None if self.num_train_examples is None else math.ceil(self.num_train_examples / self.batch_size)

    def train_examples(self, seed: int, step: int, device: torch.device | str) -> Tensor:
        """[B] int64, the training examples of `step` (0-based, within the stage): a function of (seed, stage, step).

        B is batch_size, or less at the end of an epoch. `mqar_examples` makes them, with split "train".
        """
        if self.num_train_examples is None or self.steps_per_epoch is None:
            return torch.arange(step * self.batch_size, (step + 1) * self.batch_size, device=device)
        epoch, step = divmod(step, self.steps_per_epoch)
        order = _epoch_order(seed, self.index, epoch, self.num_train_examples, str(device))
        return order[step * self.batch_size : (step + 1) * self.batch_size]


@lru_cache(maxsize=1)
def _epoch_order(seed: int, stage: int, epoch: int, num_examples: int, device: str) -> Tensor:
    return epoch_order(seed=seed, stage=stage, epoch=epoch, num_examples=num_examples, device=device)


def stages_from_config(task: MQARConfig) -> list[MQARStage]:
    """The stages of a task config: a curriculum's, or the single one of the scratch protocol (num_pairs = L / 4).

    Raises:
        ConfigError: naming the key that is missing, unknown or out of range.
    """
    scratch: dict[str, int | None] = {
        key: getattr(task, key) for key in ("seq_len", "num_train_examples", "num_epochs")
    }
    if task.stages is not None:
        given = [key for key, value in scratch.items() if value is not None]
        if given:
            raise ConfigError(f"task.{given[0]}: got {scratch[given[0]]} beside task.stages, expected one or the other")
        return [
            MQARStage(
                index=i,
                max_steps=stage.max_steps,
                batch_size=_batch_size(stage.seq_len, task),
                context=stage.seq_len,
                is_tested=stage.in_figure,
                spec=_spec(f"task.stages[{i}].", stage.seq_len, stage.num_pairs, task),
            )
            for i, stage in enumerate(task.stages)
        ]
    for key, value in scratch.items():
        if value is None or value < 1:
            raise ConfigError(f"task.{key}: got {value}, expected >= 1 (or task.stages, for a curriculum)")
    seq_len, num_train_examples, num_epochs = (value or 0 for value in scratch.values())
    spec = _spec("task.", seq_len, seq_len // 4, task)
    size = _batch_size(seq_len, task)
    return [
        MQARStage(
            index=0,
            max_steps=num_epochs * math.ceil(num_train_examples / size),
            batch_size=size,
            context=seq_len,
            is_tested=True,
            spec=spec,
            num_train_examples=num_train_examples,
        )
    ]


def _spec(path: str, seq_len: int, num_pairs: int, task: MQARConfig) -> MQARSpec:
    shares = {"overwrite_share": task.overwrite_share, "distractor_share": task.distractor_share}
    given = [name for name, share in shares.items() if share]
    if task.zipf is None and given:
        raise ConfigError(
            f"task.{given[0]}: got {shares[given[0]]} with task.zipf=null, expected 0, or an exponent there"
        )
    numbers = [int(share * num_pairs + 0.5) for share in shares.values()]
    # The spec knows numbers, and a config shares.
    if 0 < num_pairs <= numbers[1]:
        raise ConfigError(
            f"task.distractor_share: got {task.distractor_share}, which is {numbers[1]} of {path}num_pairs = "
            f"{num_pairs}, expected a share that leaves a pair to be queried"
        )
    if task.stages is None and numbers[0]:
        raise ConfigError(
            f"task.overwrite_share: got {task.overwrite_share} with task.stages=null, whose seq_len / 4 pairs leave no "
            "room to write a key again, expected 0, or stages of fewer pairs"
        )
    try:
        if task.zipf is None:
            return MQARSpec(seq_len, num_pairs, task.vocab_size, task.power)
        return InterferenceSpec(seq_len, num_pairs, task.vocab_size, task.power, *numbers, zipf=task.zipf)
    except ValueError as error:
        owner = "task." if str(error).startswith(("vocab_size", "power", "zipf")) else path
        raise ConfigError(f"{owner}{error}") from error


def _batch_size(seq_len: int, task: MQARConfig) -> int:
    if task.tokens_per_step < seq_len:
        raise ConfigError(
            f"task.tokens_per_step: got {task.tokens_per_step}, expected at least one sequence of {seq_len} tokens"
        )
    return task.tokens_per_step // seq_len
