"""What the Triton kernels share: packed sequences cut into pieces, the reciprocal, what the machine can do."""

# B batch, T time, H heads, K key dim, V value dim, N sequences
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
# Neither the interpreter nor a GPU of another make knows PTX.
HAS_PTX = not INTERPRETED and torch.version.cuda is not None

# The states are multiplied by what was forgotten once that is exp(-MAX_DECAY): the inverse is used as a weight, and
# beside a larger sum of log decays small ones would be rounded away.
MAX_DECAY = 1.0


# The numbers that a call gives a kernel when it runs it. Triton would compile variants of each: where it is 1, where it
# is a multiple of 16, and for the rest; a new length would wait seconds for its first result.
SIZES = [
    "T", "H", "N", "num_tokens", "num_tokens_all", "first_head", "num_heads", "segments_each", "chunks_each",
    "segment_size", "chunk_size", "start_kind", "stores_chunks", "end_kind", "has_start", "has_end", "is_reverse",
    "flow_kind", "num_states", "num_items", "num_segments", "num_chunks", "num_blocks", "tile_k",
]  # fmt: skip
# The tensors that are loaded entry by entry, which makes nothing of the alignment of the first one.
SCALARS = ["g", "prior", "cu_seqlens", "offsets", "sequence_of", "chunk_offsets"]


class Precision(NamedTuple):
    """What the kernels do for inputs of one dtype.

    Attributes:
        is_split: whether states come from products of two bfloat16 an argument, exact to 2^-17 instead of 2^-24.
        max_growth: how many times an importance may grow within a chunk of the backward, and
        max_writes: how many times what stood before it all its writes together may be, for its tokens to be taken out
            of the state after it: that loses about as many units of rounding of that state.
    """

    is_split: bool
    max_growth: float
    max_writes: float


PRECISIONS = {
    torch.float32: Precision(False, 16.0, 64.0),
    torch.float16: Precision(True, 16.0, 64.0),
    # Rounded to 2^-9 itself: more units of 2^-17 do not count.
    torch.bfloat16: Precision(True, 128.0, 256.0),
}


@triton.jit
def reciprocal(x, HAS_PTX: tl.constexpr):
    """1 / x to one unit in the last place; the plain division of Triton costs eight instructions more."""
    if HAS_PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


# No piece has more tokens: validation.check_triton_sizes refuses four programs a token from 2^31 on.
LONGEST = tl.constexpr(2**29 - 1)


@triton.jit
def locate(piece, T, pieces_each, cu_seqlens, offsets, sequence_of, length, IS_PACKED: tl.constexpr):
    """The sequence of a piece, its number there, its first token and how many tokens it has (0 beyond the last)."""
    if IS_PACKED:
        n = tl.load(sequence_of + piece)
        index = piece - tl.load(offsets + n).to(tl.int32)
        start = tl.load(cu_seqlens + n).to(tl.int64) + index * length
        end = tl.load(cu_seqlens + n + 1).to(tl.int64)
    else:
        n = piece // pieces_each
        index = piece - n * pieces_each
        start = n.to(tl.int64) * T + index * length
        end = (n + 1).to(tl.int64) * T
    # A bound that the compiler knows: without one, numbers that could be negative take the registers of states.
    num_tokens = tl.minimum(tl.minimum(end - start, length), LONGEST)
    return n, index, start, tl.maximum(num_tokens, 0).to(tl.int32)


class Pieces(NamedTuple):
    """Sequences cut into pieces of at most `length` tokens, without reading `cu_seqlens` on the host.

    Attributes:
        count: pieces there may be; those beyond the last real one are empty.
        each: pieces of every sequence, when all are equally long.
        offsets: [N + 1] or None, the first piece of each packed sequence.
        sequence_of: [count] or None, the sequence of each piece.
    """

    length: int
    count: int
    each: int
    offsets: Tensor | None
    sequence_of: Tensor | None


def cut(num_sequences: int, num_tokens: int, length: int, cu_seqlens: Tensor | None) -> Pieces:
    """Cuts `num_sequences` sequences of `num_tokens` tokens, or the packed ones of `cu_seqlens`, into pieces."""
    if cu_seqlens is None:
        each = -(-num_tokens // length)
        return Pieces(length, num_sequences * each, each, None, None)
    # Every sequence ends with at most one piece that is not full.
    count = num_tokens // length + num_sequences
    pieces = (cu_seqlens.diff() + (length - 1)) // length
    offsets = torch.nn.functional.pad(pieces.cumsum(0), (1, 0))
    numbers = torch.arange(count, device=cu_seqlens.device)
    # The last sequence takes the empty rest: its pieces there begin after its end.
    sequence_of = torch.searchsorted(offsets[1:], numbers, right=True).clamp_(max=num_sequences - 1)
    return Pieces(length, count, 0, offsets, sequence_of.to(torch.int32))


# Tensors from here on need offsets of 64 bits.
LARGE = 2**31


# Bytes: what a thread moves at most at a time.
ALIGNMENT = 16


def aligned(x: Tensor) -> Tensor:
    """x, copied where its first entry is not at a multiple of ALIGNMENT: Triton would compile kernels for that, too."""
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()


# Triton's own two are functions of kernels as well: 200 calls took a third of the host's time of a training call.
def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """The smallest power of 2 that is not below x, for x >= 1."""
    return 1 << (x - 1).bit_length()


def smallest_cover(size: int, tiles: tuple[int, ...]) -> int:
    """The tile whose multiples cover `size` with the least waste, the first of equals."""
    return min(tiles, key=lambda tile: cdiv(size, tile) * tile)
