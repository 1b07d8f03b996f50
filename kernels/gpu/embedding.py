"""The gradient of an embedding in Triton: tokens are sorted, and the rows of equal ones summed in their order.

The same sum in every run, as PyTorch's own, at a third of its time: 16 bits of a token are sorted instead of 64, and
every row is read once.
"""

# N tokens, V vocabulary, D width, R tokens of a block

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import SIZES, cdiv

BLOCK = 32
WIDTH = 128
# Blocks whose parts of one word are met at a time.
AHEAD = 32


@triton.jit(do_not_specialize=SIZES)
def _sum_kernel(
    gradient, order, tokens, weight, heads, tails, N, D, R: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Sums a block's rows by word.

    A word that lies within the block is done. What a block has of a word that began before it goes into heads, of
    one that begins here and goes on after it into tails.
    """
    block = tl.program_id(0)
    at = block * R + tl.arange(0, R)
    dims = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_d = dims < D
    inside = at < N
    word = tl.load(tokens + at, mask=inside, other=-1).to(tl.int32)
    previous = tl.load(tokens + at - 1, mask=inside & (at > 0), other=-1).to(tl.int32)
    following = tl.load(tokens + at + 1, mask=at + 1 < N, other=-1).to(tl.int32)
    begins = (word != previous) & inside
    first = tl.arange(0, R) == 0
    # The n-th word of the block gathers in row n; what began before it in row 0.
    nth = tl.cumsum((begins & ~first).to(tl.int32), 0)
    row = tl.load(order + at, mask=inside, other=0)
    values = tl.load(gradient + row[:, None] * D + dims[None, :], mask=inside[:, None] & in_d[None, :], other=0.0)
    member = (nth[None, :] == tl.arange(0, R)[:, None]) & inside[None, :]
    # Zeros and ones are exact in tf32; of the values it takes 22 bits.
    sums = tl.dot(member.to(tl.float32), values.to(tl.float32), input_precision="tf32x3")
    last = tl.arange(0, R) == R - 1
    name = tl.max(tl.where(member, word[None, :], -1), 1)
    # The word in row n began before the block, or goes on after it.
    is_old = tl.max((member & (first & ~begins)[None, :]).to(tl.int32), 1) > 0
    goes_on = tl.max((member & (last & (word == following))[None, :]).to(tl.int32), 1) > 0
    exists = (name >= 0)[:, None] & in_d[None, :]
    whole, to_head = ~is_old & ~goes_on, is_old
    tl.store(weight + name.to(tl.int64)[:, None] * D + dims[None, :], sums, mask=exists & whole[:, None])
    part = block.to(tl.int64) * D + dims[None, :] + tl.zeros([R, 1], tl.int64)
    tl.store(heads + part, sums, mask=exists & to_head[:, None])
    tl.store(tails + part, sums, mask=exists & (~is_old & goes_on)[:, None])


@triton.jit(do_not_specialize=SIZES)
def _join_kernel(
    tokens, heads, tails, weight, N, num_blocks, D, R: tl.constexpr, WIDTH: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """The word that begins in a block and goes on after it: its tail there, and its heads in the blocks that follow."""
    block = tl.program_id(0)
    dims = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_d = dims < D
    last = (block + 1) * R - 1
    goes_on = last + 1 < N
    word = tl.load(tokens + last, mask=goes_on, other=-1).to(tl.int32)
    goes_on = goes_on & (tl.load(tokens + last + 1, mask=goes_on, other=-2).to(tl.int32) == word)
    # Whether the block's first token has a word before it that is the same: then another block is its beginning.
    is_old = tl.load(tokens + block * R - 1, mask=goes_on & (block > 0), other=-1).to(tl.int32) == word
    if goes_on & ~is_old:
        total = tl.load(tails + block.to(tl.int64) * D + dims, mask=in_d, other=0.0)
        after = block + 1
        found = AHEAD
        while found == AHEAD:
            blocks = after + tl.arange(0, AHEAD)
            same = tl.load(tokens + blocks * R, mask=blocks < num_blocks, other=-1).to(tl.int32) == word
            parts = heads + blocks.to(tl.int64)[:, None] * D + dims[None, :]
            total += tl.sum(tl.load(parts, mask=same[:, None] & in_d[None, :], other=0.0), 0)
            found = tl.sum(same.to(tl.int32), 0)
            after += AHEAD
        tl.store(weight + word.to(tl.int64) * D + dims, total, mask=in_d)


def embedding_gradient(gradient: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """[V, D] fp32: for every word the sum of gradient [N, D], fp32 or half precision, over its tokens [N]; on a GPU.

    One that is not finite makes the rows of some other words NaN too.
    """
    gradient = gradient.contiguous()
    N, D = gradient.shape
    weight = torch.zeros(vocab_size, D, dtype=torch.float32, device=gradient.device)
    if N == 0:
        return weight
    # A radix sort takes as many passes as keys have bytes.
    narrow = torch.int16 if vocab_size <= 2**15 else torch.int32
    sorted_tokens, order = tokens.to(narrow).sort(stable=True)
    num_blocks = cdiv(N, BLOCK)
    heads, tails = (torch.empty(num_blocks, D, dtype=torch.float32, device=gradient.device) for _ in range(2))
    grid = (num_blocks, cdiv(D, WIDTH))
    # Triton launches on the current device.
    with torch.cuda.device_of(gradient):
        launch: Any = _sum_kernel[grid]
        launch(gradient, order, sorted_tokens, weight, heads, tails, N, D, BLOCK, WIDTH, num_warps=4)
        launch = _join_kernel[grid]
        launch(sorted_tokens, heads, tails, weight, N, num_blocks, D, BLOCK, WIDTH, AHEAD, num_warps=4)
    return weight
