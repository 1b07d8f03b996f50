"""What a training step costs: FLOPs, the share of the peak that a GPU reaches of them, memory, and waiting for data."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Dense bfloat16, from the data sheets, by a part of the device's name: FLOPs a second.
PEAK_BF16_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOPs a second of a GPU by its name; None for one that is not in the table.

    >>> peak_flops("NVIDIA H200")
    989000000000000.0
    >>> peak_flops("a CPU") is None
    True
    """
    # As whole words, an L40 is no L4; and the longest one, an H100 PCIe is no H100.
    found = [name for name in PEAK_BF16_FLOPS if re.search(rf"\b{name}\b", device_name)]
    return PEAK_BF16_FLOPS[max(found, key=len)] if found else None


class StepCosts:
    """Time and memory of the training steps since the last row.

    Args:
        device: of the model.
        flops_per_token: of training, `LanguageModel.training_flops_per_token`.
        num_ranks: processes, of one GPU each.
    """

    def __init__(self, device: torch.device, flops_per_token: int, num_ranks: int) -> None:
        self.device = device
        self.flops_per_token = flops_per_token
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.peak = None if peak is None else peak * num_ranks
        self._waited_s = 0.0
        # Of the last step, before clipping.
        self.gradient_norm: Tensor | None = None

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time within as spent on batches, by the host's clock."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - started

    def take(self, tokens_per_s: float, elapsed_s: float) -> dict[str, float]:
        """The metrics of a row, and begins the next.

        Args:
            tokens_per_s: of all processes.
            elapsed_s: since the last row, without what is not training.

        Returns:
            data_wait, the share of the time that the host spent on batches; gradient_norm, L2, of the last step before
            clipping; mfu, the share of the peak, where the device's is known; peak_memory_gib of this process's GPU
            since the last row.
        """
        metrics = {"data_wait": self._waited_s / max(elapsed_s, 1e-9)}
        self._waited_s = 0.0
        if self.gradient_norm is not None:
            metrics["gradient_norm"] = float(self.gradient_norm)
        if self.peak is not None:
            metrics["mfu"] = tokens_per_s * self.flops_per_token / self.peak
        if self.device.type == "cuda":
            metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.device)
        return metrics
