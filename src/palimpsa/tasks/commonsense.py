"""Next tokens of prepared text as a task: packed rows in the order of an epoch, and held-out perplexity."""

# B rows, T tokens of all of them, n targets

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import CommonsenseConfig
from palimpsa.tasks.data_digests import split_folder
from palimpsa.tasks.linear_loss import linear_cross_entropy
from palimpsa.tasks.packing import RESET_EVERY_CONTEXT, Packing
from palimpsa.tasks.perplexity import Perplexity
from palimpsa.tasks.random import derive_key, permuted
from palimpsa.tasks.task import Loss, Metrics, Stage, Task, share_of
from palimpsa.tasks.token_batches import Prefetch, TokenBatch, read_rows
from palimpsa.text.own_tokenizer import check_own_tokenizer
from palimpsa.text.shards import TokenShards


@dataclass(frozen=True)
class CommonsenseStage(Stage):
    """The one stage of a run; an example is a row.

    row_tokens: of a row, a multiple of the context. num_rows: of the training stream; what is left is no whole one and
    is not trained on.
    """

    row_tokens: int
    num_rows: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.row_tokens


class CommonsenseTask(Task[CommonsenseStage, TokenBatch]):
    """Language modelling on token shards.

    Step s of a run trains on rows s B to (s + 1) B of an endless sequence: epoch after epoch all rows, each in an order
    that is a permutation of (seed, epoch) alone. So the step says all, and a step goes over the end of an epoch.

    Metrics: see `Perplexity`.

    Args:
        config: the `task` group.
        seed: of the order, >= 0.

    Raises:
        ConfigError: for data that are missing, damaged or shorter than a row, a tokenizer of more words than
            task.vocab_size, other tokenizers of the splits, one that makes other ids today, or sizes that do not go
            into each other.
    """

    metric = "loss"
    reports_costs = True
    keeps_final_weights = True

    def __init__(self, config: CommonsenseConfig, seed: int) -> None:
        self.seed = seed
        self.shards = {split: _open(config, split) for split in ("train", "validation")}
        train, validation = self.shards["train"], self.shards["validation"]
        self.stages = [_stage(config, train)]
        context = config.context
        if validation.num_tokens < context:
            raise ConfigError(
                f"task.context: got {context}, expected at most the {validation.num_tokens} tokens of "
                f"{validation.directory}"
            )
        if train.manifest.tokenizer.sha256 != validation.manifest.tokenizer.sha256:
            raise ConfigError(
                f"task.data: got {validation.directory} of another tokenizer than {train.directory}, expected one"
            )
        self.notes = _check_golden_ids(train, validation)
        self._packings = {
            split: Packing(shards.document_ends, context, config.documents) for split, shards in self.shards.items()
        }
        self._perplexity = Perplexity(validation, context=context, num_tokens=config.validation_tokens)
        self._prefetch = Prefetch(self._share)

    def train_examples(self, stage: CommonsenseStage, step: int, device: torch.device) -> Tensor:
        # Of a short text a step may go through several epochs.
        return torch.cat(list(self._rows_by_epoch(stage, step).values())).to(device)

    def _rows_by_epoch(self, stage: CommonsenseStage, step: int) -> dict[int, Tensor]:
        """The rows that a step takes, in their order."""
        places = torch.arange(step * stage.batch_size, (step + 1) * stage.batch_size)
        epochs, places = places // stage.num_rows, places % stage.num_rows
        return {
            epoch: permuted(derive_key(self.seed, stage.index, epoch), places[epochs == epoch], stage.num_rows)
            for epoch in epochs.unique().tolist()
        }

    def describe_batch(self, stage: CommonsenseStage, step: int) -> str:
        """Each row's first token, as its position in the training split, and the document that this is in."""
        shards = self.shards["train"]
        told = []
        for epoch, rows in self._rows_by_epoch(stage, step).items():
            starts = rows.numpy() * stage.row_tokens
            documents = np.searchsorted(shards.document_ends, starts, side="right")
            places = ", ".join(
                f"{start} (document {document})" for start, document in zip(starts, documents, strict=True)
            )
            told.append(f"in epoch {epoch} at {places}")
        return f"rows of {stage.row_tokens} tokens of {shards.directory} that begin {'; '.join(told)}"

    def make_batch(self, stage: CommonsenseStage, split: str, examples: Tensor) -> TokenBatch:
        return self._read(stage, split, examples).to(examples.device)

    def batch(
        self, stage: CommonsenseStage, step: int, device: torch.device, *, rank: int = 0, num_ranks: int = 1
    ) -> TokenBatch:
        return self._prefetch.take(step, rank, num_ranks).to(device)

    def _share(self, step: int, rank: int, num_ranks: int) -> TokenBatch:
        """One share of a step, on the CPU; its weight is its part of the step's targets, times the number of shares."""
        (stage,) = self.stages
        examples = self.train_examples(stage, step, torch.device("cpu"))
        batch = self._read(stage, "train", share_of(examples, rank, num_ranks))
        in_step = self._packings["train"].num_targets(examples.numpy() * stage.row_tokens, stage.row_tokens)
        if not in_step:
            raise ValueError(f"{self.shards['train'].directory}: step {step} predicts nothing: documents of one token")
        return batch._replace(weight=torch.tensor(len(batch.labels) * num_ranks / in_step))

    def _read(self, stage: CommonsenseStage, split: str, examples: Tensor) -> TokenBatch:
        starts = [row * stage.row_tokens for row in examples.tolist()]
        bounds = [(start, start + stage.row_tokens) for start in starts]
        return read_rows(self.shards[split], self._packings[split], bounds)

    def count_examples(self, batch: TokenBatch) -> int:
        return batch.tokens.numel() // self.stages[0].row_tokens

    def loss(self, model: nn.Module, batch: TokenBatch) -> Loss:
        network: Any = model
        hidden = network.hidden(batch.tokens, cu_seqlens=batch.cu_seqlens)[0, batch.positions[0]]
        # Of a share of documents of one token the sum over no targets: its gradients are zeros.
        found = linear_cross_entropy(hidden, network.output_weight, batch.labels, num_targets=len(batch.labels) or 1)
        return Loss(found.mean * batch.weight, len(batch.labels))

    def evaluate(self, model: nn.Module, split: str, stage: CommonsenseStage, device: torch.device) -> Metrics:
        if split != "validation":
            raise ValueError(f"split: got {split!r}, expected 'validation': what is tested is a matter of its own")
        return self._perplexity(model, device)

    def is_solved(self, validation: Metrics) -> bool:
        return False

    def stage_result(self, stage: CommonsenseStage, validation: Metrics, test: Metrics | None) -> dict[str, Any]:
        by = {
            f"validation_loss_by_{name}": {
                key.removeprefix(f"loss/{name}"): value
                for key, value in validation.items()
                if key.startswith(f"loss/{name}")
            }
            for name in ("position", "length")
        }
        return {
            "context": stage.context,
            "epochs": stage.max_steps * stage.batch_size / stage.num_rows,
            "validation_loss": validation["loss"],
            "validation_perplexity": validation["perplexity"],
            "validation_perplexity_per_byte": validation["perplexity_per_byte"],
            **by,
        }

    def headline(self, result: dict[str, Any]) -> str:
        return f"validation loss {result['validation_loss']:.3f}, perplexity {result['validation_perplexity']:.1f}"

    def contexts(self, stage: CommonsenseStage, num_examples: int, device: torch.device) -> Tensor:
        shards = self.shards["validation"]
        num_examples = min(num_examples, shards.num_tokens // stage.context)
        tokens = shards.tokens(0, num_examples * stage.context)
        return torch.from_numpy(tokens).view(num_examples, stage.context).to(device)

    def release(self) -> None:
        self._prefetch.close()


def _open(config: CommonsenseConfig, split: str) -> TokenShards:
    shards = TokenShards.open(
        split_folder(config.data, split), verify="hashes" if config.verify == "hashes" else "sizes"
    )
    if shards.vocab_size > config.vocab_size:
        raise ConfigError(
            f"task.vocab_size: got {config.vocab_size}, expected at least {shards.vocab_size}, the vocabulary of the "
            f"tokenizer of {shards.directory}; task.vocab_size={shards.vocab_size} will do"
        )
    return shards


def _check_golden_ids(train: TokenShards, validation: TokenShards) -> list[str]:
    """Holds both splits to one tokenizer, and this to its golden ids; says so where it is not here to be asked."""
    if train.manifest.tokenizer.golden_ids != validation.manifest.tokenizer.golden_ids:
        raise ConfigError(
            f"task.data: got {validation.directory} with other golden ids than {train.directory}, expected one "
            "tokenizer's"
        )
    try:
        missing = check_own_tokenizer(train.manifest)
    except ConfigError as error:
        raise ConfigError(f"{train.directory}: {error}") from error
    if missing is None:
        return []
    return [
        f"{train.directory}: its tokenizer was not held to the golden ids, because it is not here ({missing}); "
        "training does without it"
    ]


def _stage(config: CommonsenseConfig, train: TokenShards) -> CommonsenseStage:
    row_tokens = config.contexts_per_row * config.context
    if config.documents == RESET_EVERY_CONTEXT and config.contexts_per_row == 1:
        raise ConfigError(
            "task.contexts_per_row: got 1, expected at least 2 with task.documents=reset_every_context: within one "
            "context nothing is cut that task.documents=reset would not cut"
        )
    if train.num_tokens < row_tokens:
        raise ConfigError(
            f"task.context: got rows of {row_tokens} tokens, expected at most the {train.num_tokens} of "
            f"{train.directory}; a smaller task.context, task.contexts_per_row or more text will do"
        )
    if config.tokens_per_step % row_tokens:
        raise ConfigError(
            f"task.tokens_per_step: got {config.tokens_per_step}, expected a multiple of {row_tokens} "
            "(task.context times task.contexts_per_row)"
        )
    if (config.num_steps is None) == (config.num_tokens is None):
        raise ConfigError(
            f"task.num_steps: got {config.num_steps} with task.num_tokens={config.num_tokens}, expected one of them"
        )
    num_tokens = config.num_tokens or 0
    return CommonsenseStage(
        index=0,
        max_steps=config.num_steps or math.ceil(num_tokens / config.tokens_per_step),
        batch_size=config.tokens_per_step // row_tokens,
        context=config.context,
        is_tested=False,
        row_tokens=row_tokens,
        num_rows=train.num_tokens // row_tokens,
    )
