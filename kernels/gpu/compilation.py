"""Compiling the kernels of a call side by side, before the first of them runs.

A process meets a mode of an operator: its dtypes, K, V, and what is asked of it. Then the host's part of the call is
rehearsed on meta tensors, which hold nothing: there `launch` compiles, and runs nothing. Rehearsed are this call and
some of other sizes, which together launch all that calls of this mode can. From then on no call of it compiles.
"""

# B batch, T time, H heads, N sequences
import contextvars
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from .primitives import INTERPRETED

# (B, T, H): one long sequence, which is cut, and so many sequences and heads that each fills a GPU.
OTHER_SIZES = ((1, 4096, 1), (64, 128, 64))

_lock = threading.Lock()
_compiled: set[Hashable] = set()
# The kernels that the rehearsal under way has launched.
_launched: contextvars.ContextVar[list[Any]] = contextvars.ContextVar("launched")


class Rehearsal(NamedTuple):
    """The sizes of a call, and meta tensors of these sizes in place of its arguments."""

    B: int
    T: int
    H: int
    N: int

    def sequence(self, x: Any) -> Any:
        """[B, T, H, ...] for x [B, T, H, ...]; None for None, as the others."""
        return self._in_place_of(x, self.B, self.T, self.H)

    def state(self, x: Any) -> Any:
        """[N, H, ...] for x [N, H, ...]."""
        return self._in_place_of(x, self.N, self.H)

    def prior(self, x: Tensor) -> Tensor:
        """[H] for x [H]."""
        return self._in_place_of(x, self.H)

    def bounds(self, x: Any) -> Any:
        """[N + 1] for x [N + 1]."""
        return self._in_place_of(x, self.N + 1)

    @staticmethod
    def _in_place_of(x: Any, *shape: int) -> Any:
        if x is None:
            return None
        return torch.empty(*shape, *x.shape[len(shape) :], dtype=x.dtype, device="meta")


def rehearsals(q: Tensor, cu_seqlens: Tensor | None, *, is_large: bool) -> Iterator[Rehearsal]:
    """This call's sizes, and OTHER_SIZES unless offsets of 64 bits, which those do not need, make this a mode apart."""
    B, T, H = q.shape[:3]
    yield Rehearsal(B, T, H, B if cu_seqlens is None else cu_seqlens.shape[0] - 1)
    if not is_large:
        for num, length, heads in OTHER_SIZES:
            B, T = (num, length) if cu_seqlens is None else (1, num * length)
            yield Rehearsal(B, T, heads, num)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """`kernel[grid](*args, **options)`; where the first argument is a meta tensor, compiles the kernel alone."""
    if args[0].is_meta:
        kernel.warmup(*args, grid=grid, **options)
        _launched.get([]).append(kernel)
    else:
        kernel[grid](*args, **options)


def compile_once(mode: Hashable, rehearse: Callable[[], None]) -> None:
    """Compiles what `rehearse` launches on meta tensors, side by side, where this process has not done so for `mode`.

    Nothing here calls CUDA, so that a CUDA graph may be under capture.
    """
    # The interpreter compiles nothing.
    if INTERPRETED:
        return
    key = (driver.active.get_current_device(), mode)
    if key in _compiled:
        return
    with _lock:
        if key not in _compiled:
            # A context of its own: whatever happens, the caller's launches are compiled and run as before.
            contextvars.Context().run(_compile, rehearse)
            _compiled.add(key)


def _compile(rehearse: Callable[[], None]) -> None:
    launched: list[Any] = []
    _launched.set(launched)
    try:
        with ThreadPoolExecutor() as executor, triton.AsyncCompileMode(executor):
            rehearse()
    except BaseException:
        for kernel in launched:
            _forget_unfinished(kernel)
        raise


def _forget_unfinished(kernel: Any) -> None:
    """Triton keeps what failed, or was interrupted, as if it were compiled."""
    for kernels, *_ in kernel.device_caches.values():
        for key in [key for key, found in kernels.items() if isinstance(found, triton.FutureKernel)]:
            del kernels[key]
