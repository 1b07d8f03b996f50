"""The memory probe: windows and metaplasticity of a model in training."""

# B batch, H heads, K key dim, G precisions a head

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from palimpsa.mixers import MemoryTrace
from palimpsa.training.curriculum import Curriculum, network
from palimpsa.training.history import StepLog


class MemoryProbe(L.Callback):
    """Logs the memory window N_t and the metaplasticity ratio on a few validation contexts.

    N_t = 1 / (1 - alpha_t), tokens, averaged over the context; the ratio is (I_max - I_min) / I_min of the importance
    that a context leaves behind. Both per layer and head, averaged over contexts, and as means over all heads.

    Args:
        curriculum: says which contexts the current stage has.
        step_log: holds the history, and leaves the probe's time out of the throughput.
        every: optimiser steps.
        num_examples: contexts.
    """

    def __init__(self, curriculum: Curriculum, step_log: StepLog, *, every: int, num_examples: int) -> None:
        self.curriculum = curriculum
        self.step_log = step_log
        self.every = every
        self.num_examples = num_examples
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Once untimed: what a first call imports and compiles is not the probe's time.
        self._trace(trainer, pl_module)
        if trainer.global_step == 0:
            self._probe(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.curriculum.ends_step(batch_idx) and trainer.global_step % self.every == 0:
            self._probe(trainer, pl_module)

    def _probe(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        started = time.perf_counter()
        traces = self._trace(trainer, pl_module)
        self.step_log.history.record(trainer, {"stage": self.curriculum.stage_index, **memory_metrics(traces)})
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        self.step_log.pause(elapsed)

    def _trace(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[MemoryTrace]:
        contexts = self.curriculum.task.contexts(self.curriculum.stage, self.num_examples, pl_module.device)
        # A handful of contexts is not worth compiling for.
        with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            return network(pl_module).memory(contexts)


def memory_metrics(traces: list[MemoryTrace]) -> dict[str, float]:
    """One number a layer and head, and the mean over all, of window and metaplasticity ratio (where there are such).

    A model whose memory does not decay has no finite window, and none is logged.
    """
    measured = {}
    windows = [trace.window for trace in traces if trace.window is not None]
    if windows:
        measured["window"] = torch.stack([window.mean(dim=0) for window in windows])
    importances = [trace.importance for trace in traces if trace.importance is not None]
    if importances:
        measured["metaplasticity"] = torch.stack([metaplasticity_ratio(i).mean(dim=0) for i in importances])
    metrics = {}
    for name, per_head in measured.items():
        # One transfer a quantity, not one a head.
        rows = per_head.tolist()
        metrics[f"{name}_mean"] = sum(map(sum, rows)) / sum(map(len, rows))
        for layer, row in enumerate(rows):
            for head, value in enumerate(row):
                metrics[f"{name}/layer{layer}/head{head}"] = value
    return metrics


def metaplasticity_ratio(importance: Tensor) -> Tensor:
    """(I_max - I_min) / I_min over the entries of each head: importance [B, H, K, G] -> [B, H]."""
    low, high = importance.flatten(2).aminmax(dim=2)
    return (high - low) / low
