"""A counter-based random stream in torch integers.

Every draw is a hash of (key, example, draw), so that a batch is a pure function of its address, the same on every
device, and needs no generator state to be saved or restored. The mixer is SplitMix64's finaliser (Steele, Lea and
Flood, 2014). torch.Generator will not do here: on the CPU it keeps 32 bits of its seed, and its stream differs from
the GPU's.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1
# Of `permuted`. Of a few items not every order was as likely with half the rounds, or with fewer bits a half.
_NUM_ROUNDS = 16
_MIN_HALF_BITS = 3


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as Python's signed int64, which is what torch takes."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(z: Tensor) -> Tensor:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        # torch shifts int64 arithmetically: the mask turns it into the logical shift that the mixer wants.
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * _signed(multiplier)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _mix_int(z: int) -> int:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        z = ((z ^ (z >> shift)) * multiplier) & _MASK
    return z ^ (z >> 31)


def derive_key(*path: int) -> int:
    """Hashes a path of integers, such as (seed, split, stage), to one 64-bit key.

    >>> derive_key(1, 2) != derive_key(2, 1)
    True
    """
    key = 0
    for part in path:
        key = _mix_int(key ^ _mix_int((part + 1) * _GOLDEN & _MASK))
    return key


def random_bits(key: int, examples: Tensor, num_draws: int) -> Tensor:
    """64 random bits for each draw of each example.

    Args:
        key: the stream, from `derive_key`.
        examples: [B] int64, indices of the examples.
        num_draws: draws per example.

    Returns:
        [B, num_draws] int64, uniform over all 64-bit patterns.
    """
    if examples.is_cuda:
        from palimpsa.kernels.gpu.random_bits import random_bits_kernel

        return random_bits_kernel(_signed(key), examples, num_draws)
    draws = torch.arange(1, num_draws + 1, device=examples.device, dtype=torch.int64)
    example_keys = _mix(_mix((examples + 1) * _signed(_GOLDEN)) ^ _signed(key))
    # Both counters are mixed before they meet: plain sums would make the streams of two examples overlap.
    return _mix(example_keys[:, None] ^ _mix(draws * _signed(_GOLDEN)))


def random_uniform(key: int, examples: Tensor, num_draws: int) -> Tensor:
    """[B, num_draws] float64, uniform in the open interval (0, 1), on a grid of 2^-52."""
    bits = (random_bits(key, examples, num_draws) >> 12) & ((1 << 52) - 1)
    return (bits.double() + 0.5) * 2.0**-52


def permuted(key: int, indices: Tensor, size: int) -> Tensor:
    """Where a random permutation of 0..size-1 sends some indices, without the rest of it: a Feistel network.

    An index beyond the size, in the next power of four, is sent on until it is below (Black and Rogaway, 2002).

    Args:
        key: which permutation, from `derive_key`.
        indices: [B] int64 in [0, size).
        size: at least 1 and below 2^62.

    Returns:
        [B] int64 in [0, size), distinct for distinct indices.

    >>> sorted(permuted(derive_key(1), torch.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    half_bits = max(_MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    round_keys = [_signed(derive_key(key, i)) for i in range(_NUM_ROUNDS)]

    def send(x: Tensor) -> Tensor:
        left, right = x >> half_bits, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half_bits) | right

    found = send(indices)
    while (outside := found >= size).any():
        found = torch.where(outside, send(found), found)
    return found
