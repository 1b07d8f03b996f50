"""The interface of a mixer: x [B, T, D] -> y [B, T, D], in parallel over a context or token by token."""

# B batch, T time, S all tokens so far, D model width, C channels, H heads, K key dim, V value dim, G precisions a head,
# W convolution width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsa.kernels.validation import check_packed, num_sequences, sequence_bounds
from palimpsa.mixers.layers import ShortConvolution, at_least_fp32
from palimpsa.mixers.linear_memory import LinearMemory


class MemoryTrace(NamedTuple):
    """What a memory did with a context.

    window: [B, H], N_t = 1 / (1 - alpha_t) in tokens, averaged over the context (and over key channels where the decay
    has them), or None where nothing decays: an infinite window. importance: [B, H, K, G], the importance left at the
    end, each for V / G rows of the memory, or None for a mixer that carries none.
    """

    window: Tensor | None
    importance: Tensor | None


@dataclass
class MixerCache:
    """Everything a mixer carries from token to token.

    conv: one [B, C, W-1] tensor of past inputs per short convolution. state: tuple of recurrent state tensors
    [B, H, K, V], fp32, of Palimpsa also the importance [B, H, K, G]; of attention, the keys and values so far,
    [B, H, S, K] each, which grow with the context, and once sequences have been of several lengths these, [B] int64.
    num_new: [B] int64, how many of the T tokens that come next are tokens; what follows them in a row is padding, which
    leaves the cache as it is. None: all of them are.
    """

    conv: list[Tensor]
    state: tuple[Tensor, ...]
    num_new: Tensor | None = None

    def without_padding(self, *operands: Tensor) -> Sequence[Tensor]:
        """What a memory takes of T tokens, [B, T, ...] each, with zeros where they are padding.

        A key of zeros writes nothing, a log decay of zero keeps everything, a beta of zero takes nothing off.
        """
        if self.num_new is None:
            return operands
        padding = torch.arange(operands[0].shape[1], device=self.num_new.device) >= self.num_new[:, None]
        return [x.masked_fill(padding[(..., *[None] * (x.ndim - 2))], 0) for x in operands]

    def keep_state(self, new: Sequence[Tensor]) -> None:
        """Brings the recurrent state up to date: in place, or with gradients by tensors of its own.

        What was there is an argument of the piece before, whose way back needs it as it was.
        """
        if torch.is_grad_enabled():
            self.state = tuple(x.to(old.dtype, copy=True) for old, x in zip(self.state, new, strict=False))
        else:
            for old, x in zip(self.state, new, strict=False):
                old.copy_(x)


class Mixer(nn.Module):
    """Base of all mixers.

    Subclasses define `forward`, `memory` and `state_shapes`. A cache makes `forward` continue where the cache stands,
    so that prefill and decoding mix freely: `forward(x[:, :5], cache)` then `step(x[:, 5], cache)`.

    Attributes:
        num_heads, head_k_dim, head_v_dim: H, K, V.
        flops_per_entry: operations a token on each entry of the recurrent state: see `memory_flops`.
        min_conv_width: the smallest conv_width; 0 where a mixer does without a short convolution.

    Raises:
        ValueError: for a size below 1, or num_heads that does not divide d_model.
    """

    flops_per_entry: int
    min_conv_width = 1

    def __init__(self, d_model: int, num_heads: int, head_k_dim: int, head_v_dim: int, conv_width: int) -> None:
        super().__init__()
        sizes = {
            "d_model": d_model,
            "num_heads": num_heads,
            "head_k_dim": head_k_dim,
            "head_v_dim": head_v_dim,
            "conv_width": conv_width,
        }
        for name, value in sizes.items():
            least = self.min_conv_width if name == "conv_width" else 1
            if value < least:
                raise ValueError(f"{name}: got {value}, expected >= {least}")
        if d_model % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a divisor of d_model = {d_model}")
        self.d_model = d_model
        self.num_heads = num_heads
        self.head_k_dim = head_k_dim
        self.head_v_dim = head_v_dim

    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Shape (H, K, V) of each recurrent state of one sequence; of an importance (H, K, G)."""
        raise NotImplementedError

    @property
    def state_size(self) -> int:
        """Recurrent memory of one sequence in this layer, in numbers; short convolutions' inputs not counted.

        0 for a mixer whose memory grows with the context: see `Attention`.
        """
        return sum(heads * keys * values for heads, keys, values in self.state_shapes())

    @property
    def state_growth(self) -> int:
        """Numbers that each token adds to the memory of one sequence in this layer: 0 where it has a fixed size."""
        return 0

    def memory_flops(self, context: int) -> int:
        """Floating-point operations of one token's write to and read from the memory, in the recurrent form.

        A multiply-add is two; operations on K or V numbers beside those on the state are left out.

        Args:
            context: tokens of the context; what is averaged over its positions where the memory grows.
        """
        return self.flops_per_entry * self.state_size

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The state before the first token: zeros, [B, H, K, V] each, unless a mixer says otherwise.

        fp32, whatever the dtype of the weights; fp64 beside weights in fp64.
        """
        like = at_least_fp32(next(self.parameters()))
        return tuple(like.new_zeros(batch_size, *shape) for shape in self.state_shapes())

    def new_cache(self, batch_size: int) -> MixerCache:
        """The cache before the first token of `batch_size` sequences."""
        convolutions = [module for module in self.modules() if isinstance(module, ShortConvolution)]
        return MixerCache([conv.new_cache(batch_size) for conv in convolutions], self.initial_state(batch_size))

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Mixes a context.

        Args:
            x: [B, T, D].
            cache: continue from this cache and bring it up to date; None starts afresh.
            cu_seqlens: [N+1] integer boundaries of N sequences packed into one row (B = 1); not with a cache.

        Returns:
            [B, T, D].

        Raises:
            TypeError, ValueError: for impossible boundaries: see `check_packing`.
        """
        raise NotImplementedError

    def memory(self, x: Tensor) -> MemoryTrace:
        """Windows and final importance that the context x [B, T, D] leads to."""
        raise NotImplementedError

    def linear_memory(self, x: Tensor) -> LinearMemory | None:
        """The operands that the context x [B, T, D] gives the memory; None where entries do not decay by themselves."""
        return None

    @torch.no_grad()
    def step(self, x: Tensor, cache: MixerCache) -> Tensor:
        """Decodes one token: x [B, D] -> [B, D]; updates `cache` in place."""
        return self.forward(x[:, None], cache)[:, 0]


def checked_range(name: str, value: Sequence[float] | None, above_zero: bool) -> tuple[float, float] | None:
    """A pair (low, high) of numbers > 0 and finite, or >= 0, with low <= high; ValueError names what is none."""
    if value is None:
        return None
    limits = "0 < low <= high < inf" if above_zero else "0 <= low <= high"
    if len(value) == 2:
        low, high = map(float, value)
        if 0 < low <= high < float("inf") if above_zero else 0 <= low <= high:
            return low, high
    raise ValueError(f"{name}: got {list(value)}, expected two numbers with {limits}")


def check_packing(x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> None:
    """Checks the boundaries of packed sequences in x [B, T, D]; those on a GPU are not read.

    Raises:
        TypeError: for boundaries that are no integers.
        ValueError: for a cache beside them, another device, B > 1, or boundaries that do not go from 0 to T without
            decreasing.
    """
    if cu_seqlens is None:
        return
    if cache is not None:
        raise ValueError("cu_seqlens: packed sequences cannot continue a cache; pass one or the other")
    num_sequences(cu_seqlens)
    check_packed(cu_seqlens, "x", x)
    # Reading them would wait for the GPU, in every layer.
    if not cu_seqlens.is_cuda:
        sequence_bounds(cu_seqlens, x.shape[1])
