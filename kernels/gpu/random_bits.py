"""`random_bits` in one Triton kernel, for a GPU: as single operations of torch it is thirty launches."""

# B batch, N draws

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import cdiv

TILE = 1024


@triton.jit
def _mix(z):
    """SplitMix64's finaliser, of unsigned numbers: shifts are logical."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["key"])
def _bits_kernel(examples, bits, key, N, TILE: tl.constexpr):
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    row = tl.program_id(0).to(tl.int64)
    draw = tl.program_id(1) * TILE + tl.arange(0, TILE)
    example = tl.load(examples + row).to(tl.uint64, bitcast=True)
    stream = _mix(_mix((example + 1) * golden) ^ key.to(tl.int64).to(tl.uint64, bitcast=True))
    drawn = _mix(stream ^ _mix((draw + 1).to(tl.uint64) * golden))
    tl.store(bits + row * N + draw, drawn.to(tl.int64, bitcast=True), mask=draw < N)


def random_bits_kernel(key: int, examples: Tensor, num_draws: int) -> Tensor:
    """`palimpsa.tasks.random.random_bits` of a key in [-2^63, 2^63) and examples [B] on a GPU, to the same bits."""
    bits = torch.empty(examples.shape[0], num_draws, dtype=torch.int64, device=examples.device)
    if bits.numel():
        launch: Any = _bits_kernel[(examples.shape[0], cdiv(num_draws, TILE))]
        # Triton launches on the current device.
        with torch.cuda.device_of(examples):
            launch(examples.contiguous(), bits, key, num_draws, TILE, num_warps=4)
    return bits
