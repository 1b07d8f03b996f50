"""What a person watches while a run trains: its newest numbers, on its own bar and on that of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


def newest_numbers(newest: Mapping[str, float]) -> dict[str, str]:
    """What is shown of the newest value of each column of the curves, in the order in which it is.

    >>> newest_numbers({"stage": 0, "window_mean": 130.2, "loss": 2.345, "tokens_per_s": 1_234_567.0, "mfu": 0.4})
    {'loss': '2.35', 'tokens/s': '1.23M', 'MFU': '40%', 'N_t': '130'}
    """
    return {name: tell(newest[column]) for column, (name, tell) in _SHOWN.items() if column in newest}


def _short(value: float) -> str:
    """A number in three digits: 0.12, 130, 45.6k, 1.23M."""
    rounded = float(f"{value:.3g}")
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{unit}"
    return f"{rounded:g}"


# By column: what it is called, and its value in words. Windows and ratios are means over layers and heads.
_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:.2f}".format),
    "tokens_per_s": ("tokens/s", _short),
    "mfu": ("MFU", "{:.0%}".format),
    "gradient_norm": ("gradient", "{:.2g}".format),
    "data_wait": ("data wait", "{:.0%}".format),
    "peak_memory_gib": ("GiB", "{:.1f}".format),
    "window_mean": ("N_t", _short),
    "metaplasticity_mean": ("I ratio", "{:.2g}".format),
}


class StepBar(RichProgressBar):
    """The bar of a run alone: its optimiser steps of all that it takes, the time that is left, and `newest_numbers`.

    Args:
        newest: asked for the newest value of each column of the curves.
    """

    def __init__(self, newest: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self._newest = newest

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning counts batches from 0; a step may take several, and a run that was resumed had some before.
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return dict(newest_numbers(self._newest()))

    def _get_train_description(self, current_epoch: int) -> str:
        return "steps"
