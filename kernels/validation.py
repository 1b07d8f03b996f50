"""Checks of the operator's arguments: every message names the argument, what came and what was expected.

Shapes, dtypes and devices are always checked. Values are checked in debug mode only, because reading them
costs a pass over the data and, on a GPU, a host synchronisation: PALIMPSA_DEBUG=1 turns it on, 0 off; unset, it is
on for CPU tensors and off elsewhere, and the state of a step is not read. It never runs under torch.compile,
torch.vmap and torch.func.grad, where values cannot be read.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import math
import numbers
import os
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from .types import PalimpsaState

# The largest K and V of the Triton kernels, whose tiles were sized and tested up to there.
TRITON_MAX_DIM = 256
# Importances of the Triton kernels: the product of two is a float32.
TRITON_IMPORTANCES = (1e-15, 1e14)
# Programs of one launch.
_MAX_GRID = 2**31
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DEBUG = "PALIMPSA_DEBUG"
_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class OperandError(ValueError):
    """A tensor of the right shape holds values that the operator has no answer for: of a model that diverged, say."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the recurrence and of the state: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...], layout: str) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected {layout} = {expected} to agree with the other arguments"
        )


def _check_precisions(name: str, x: Tensor, lead: tuple[int, ...], value_dim: int, layout: str) -> None:
    """A precision for every group of rows: [*lead, G] with G a divisor of V, which is 0 for V = 0 alone."""
    groups = x.shape[-1] if x.ndim else 0
    is_divisor = groups == value_dim or (groups > 0 and value_dim > 0 and value_dim % groups == 0)
    if tuple(x.shape[:-1]) != lead or not is_divisor:
        sizes = ", ".join(str(size) for size in (*lead, "G"))
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected {layout} = ({sizes}) to agree with the other arguments, "
            f"with G a divisor of V = {value_dim}: each precision serves V / G rows"
        )


def _check_dtype(name: str, x: Tensor, allowed: Sequence[torch.dtype], why: str = "") -> None:
    if x.dtype not in allowed:
        raise TypeError(f"{name} has dtype {_names([x.dtype])}, expected {_names(allowed)}{why}")


def _check_scale(scale: float | None, key_dim: int) -> float:
    if scale is None:
        return key_dim**-0.5 if key_dim else 1.0
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def _as_state(name: str, state: object) -> PalimpsaState:
    if not isinstance(state, tuple | list) or len(state) != 2:
        raise TypeError(f"{name} must be a PalimpsaState or a pair (mean, importance), got {type(state).__name__}")
    return PalimpsaState(*state)


def under_transforms() -> bool:
    """Whether a transform of torch.func is active: vmap, where a value is many, or grad."""
    # Compiled code has no transforms left, and PyTorch's compiler does not know this function.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def debug_enabled(device: torch.device) -> bool:
    """Whether the values of the arguments are checked; see the module's docstring."""
    if torch.compiler.is_compiling() or under_transforms():
        return False
    setting = os.environ.get(_DEBUG, "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"the environment variable PALIMPSA_DEBUG is {setting!r}, expected 0 or 1")
    return setting == "1" or (setting == "" and device.type == "cpu")


@torch.no_grad()
def _check_range(name: str, x: Tensor, low: float, high: float, expected: str, meaning: str = "") -> None:
    """OperandError unless every number of x lies between the two, which are included."""
    if x.numel() == 0:
        return
    # One pass: both are NaN where there is one, and a NaN fails every comparison.
    least, most = (value.item() for value in torch.aminmax(x))
    if math.isnan(least):
        raise OperandError(f"{name} contains NaN" + (f", expected {expected}{meaning}" if meaning else ""))
    for kind, value in (("minimum", least), ("maximum", most)):
        if not low <= value <= high:
            raise OperandError(f"{name} must be {expected} everywhere{meaning}, its {kind} is {value}")


def _check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    state_name: str,
    state: PalimpsaState | None,
) -> None:
    # What is computed with is in this dtype: there a wider number may be infinite, or 0.
    dtype = compute_dtype(q.dtype)
    limits = torch.finfo(dtype)
    least, most = limits.smallest_normal * limits.eps, limits.max
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_range(name, x, -most, most, "finite")
    _check_range("g", g, -math.inf, 0, "<= 0", " (a log decay, alpha = exp(g))")
    if beta is not None:
        _check_range("beta", beta, 0, most, ">= 0 and finite", " (a precision)")
    _check_range("importance_prior", importance_prior.to(dtype), least, most, "> 0 and finite")
    if state is not None:
        _check_range(f"{state_name}.importance", state.importance.to(dtype), least, most, "> 0 and finite")
        _check_range(f"{state_name}.mean", state.mean.to(dtype), -most, most, "finite")


def check_triton_values(importance_prior: Tensor, state: PalimpsaState | None) -> None:
    """OperandError for importances whose products of two are no float32, which the Triton kernels take."""
    named = {"importance_prior": importance_prior}
    if state is not None:
        named["initial_state.importance"] = state.importance
    for name, x in named.items():
        # As a float32 the larger one is above itself.
        low, high = (torch.tensor(bound, dtype=x.dtype).item() for bound in TRITON_IMPORTANCES)
        _check_range(name, x, low, high, "from 1e-15 to 1e14", " on the path triton")


def _check_common(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    state_name: str,
    state: PalimpsaState | None,
    num_states: int | None,
    state_dtypes: Sequence[torch.dtype],
    time: str,
) -> None:
    """`time` is "T, " for whole sequences and "" for a single token."""
    tensors: dict[str, Tensor] = {
        "q": q,
        "k": k,
        "v": v,
        "g": g,
        "importance_prior": importance_prior,
    }
    if beta is not None:
        tensors["beta"] = beta
    if state is not None:
        tensors[f"{state_name}.mean"] = state.mean
        tensors[f"{state_name}.importance"] = state.importance
    for name, x in tensors.items():
        _check_tensor(name, x)

    rank = 4 if time else 3
    for name, x, last in (("q", q, "K"), ("v", v, "V")):
        if x.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {rank} dimensions [B, {time}H, {last}]")
    *lead, key_dim = q.shape
    value_dim = v.shape[-1]
    if key_dim < 1:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected a key dim K >= 1")
    _check_shape("k", k, (*lead, key_dim), f"[B, {time}H, K]")
    _check_shape("v", v, (*lead, value_dim), f"[B, {time}H, V]")
    if beta is not None:
        _check_precisions("beta", beta, (*lead,), value_dim, f"[B, {time}H, G]")
    _check_shape("g", g, (*lead,), f"[B, {time}H]")
    _check_shape("importance_prior", importance_prior, (lead[-1],), "[H]")
    if state is not None:
        batch = lead[0] if num_states is None else num_states
        start, end = ("B", "") if num_states is None else ("N", ", one row a sequence,")
        sizes = (batch, lead[-1], key_dim)
        _check_shape(f"{state_name}.mean", state.mean, (*sizes, value_dim), f"[{start}, H, K, V]{end}")
        name, layout = f"{state_name}.importance", f"[{start}, H, K, G]{end}"
        if beta is None:
            _check_precisions(name, state.importance, sizes, value_dim, layout)
        else:
            _check_shape(name, state.importance, (*sizes, beta.shape[-1]), layout)

    _check_dtype("q", q, FLOAT_DTYPES)
    for name, x in (("k", k), ("v", v)):
        _check_dtype(name, x, (q.dtype,), ", the dtype of q")
    if beta is not None:
        _check_dtype("beta", beta, tuple(dict.fromkeys((q.dtype, torch.float32))), " (q's dtype or float32)")
    # A log decay near 0 sets windows of thousands of tokens: bf16 would round it by up to 0.4%, and rounding alpha
    # itself would lose it altogether.
    g_dtypes = (torch.float32, torch.float64) if q.dtype == torch.float64 else (torch.float32,)
    _check_dtype("g", g, g_dtypes, ": half precision loses small decays, pass g.float()")
    _check_dtype("importance_prior", importance_prior, FLOAT_DTYPES)
    if state is not None:
        for name in (f"{state_name}.mean", f"{state_name}.importance"):
            _check_dtype(name, tensors[name], state_dtypes)

    for name, x in tensors.items():
        if x.device != q.device:
            raise ValueError(f"{name} is on device {x.device}, expected {q.device}, the device of q")
    if debug_enabled(q.device):
        # A step reads its state only where that is asked for: it costs as much as the step.
        reads_state = bool(time) or os.environ.get(_DEBUG) == "1"
        _check_values(q, k, v, beta, g, importance_prior, state_name, state if reads_state else None)


def check_sequence_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    scale: float | None,
    initial_state: tuple[Tensor, Tensor] | None,
    cu_seqlens: Tensor | None,
) -> tuple[float, PalimpsaState | None]:
    """Checks the arguments of `palimpsa`; returns the scale and the state with their defaults filled in."""
    state = None if initial_state is None else _as_state("initial_state", initial_state)
    num_states = None
    if cu_seqlens is not None:
        num_states = num_sequences(cu_seqlens)
    _check_common(
        q, k, v, beta, g, importance_prior, "initial_state", state, num_states,
        (torch.float32, torch.float64), "T, ",
    )  # fmt: skip
    if cu_seqlens is not None:
        check_packed(cu_seqlens, "q", q)
    return _check_scale(scale, q.shape[-1]), state


def check_step_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    scale: float | None,
    state: tuple[Tensor, Tensor],
) -> tuple[float, PalimpsaState]:
    """Checks the arguments of `palimpsa_step`; returns the scale with its default filled in, and the state."""
    state = _as_state("state", state)
    # The update writes into the state: a cast copy would silently leave the caller's tensors as they were.
    state_dtypes = (compute_dtype(q.dtype),) if isinstance(q, Tensor) else FLOAT_DTYPES
    _check_common(q, k, v, beta, g, importance_prior, "state", state, None, state_dtypes, "")
    tensors = {
        "q": q, "k": k, "v": v, "beta": beta, "g": g, "importance_prior": importance_prior,
        "state.mean": state.mean, "state.importance": state.importance,
    }  # fmt: skip
    for name, x in tensors.items():
        if torch.is_grad_enabled() and x is not None and x.requires_grad:
            raise ValueError(
                f"{name} requires grad, but palimpsa_step updates the state in place and has no backward: "
                "call it under torch.no_grad() or torch.inference_mode(), or use palimpsa to train"
            )
    if state.mean is state.importance:
        raise ValueError("state.mean and state.importance are one tensor, expected two: both are updated in place")
    for name in ("state.mean", "state.importance"):
        x = tensors[name]
        if x.numel() and any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
            raise ValueError(
                f"{name} is an expanded view (strides {x.stride()}), which cannot be updated in place: "
                "pass a contiguous copy"
            )
    _check_memory_of_state(state)
    return _check_scale(scale, q.shape[-1]), state


def _check_memory_of_state(state: PalimpsaState) -> None:
    """Refuses two tensors that begin at one place, and one of which several entries do."""
    # What is compiled or mapped over has no memory to ask for.
    if torch.compiler.is_compiling() or under_transforms() or not all(type(x) is Tensor for x in state):
        return
    if state.mean.numel() and state.mean.data_ptr() == state.importance.data_ptr():
        raise ValueError("state.mean and state.importance lie in the same memory: both are updated in place")
    for name, x in state._asdict().items():
        reach = 1
        for stride, size in () if x.is_contiguous() else sorted(zip(x.stride(), x.shape, strict=True)):
            if size > 1 and stride < reach:
                raise ValueError(
                    f"state.{name} has entries that share memory (strides {x.stride()}), which cannot be updated in "
                    "place: pass a contiguous copy"
                )
            reach += stride * (size - 1)


def check_triton_sizes(B: int, T: int, H: int, K: int, V: int, num_sequences: int) -> None:
    """Refuses what the Triton kernels cannot take: K or V above 256, or more programs than one launch can have.

    There is no other limit: offsets of whole rows are 64-bit numbers.
    """
    for name, letter, size in (("q", "K", K), ("v", "V", V)):
        if size > TRITON_MAX_DIM:
            raise ValueError(
                f"{name} has {letter} = {size}, but the path triton takes {letter} <= {TRITON_MAX_DIM}; "
                "PALIMPSA_PATH=chunked takes any"
            )
    # The largest grids there are, with the smallest tiles: _prepare_kernel takes eight tokens and head a program beside
    # one a tile of the states of 128 tokens; _flow_kernel one a tile of a segment of 32 tokens.
    prepare = (B * T // 8 + 16 * (B * T // 128 + num_sequences)) * H
    programs = max(prepare, 128 * (B * T // 32 + num_sequences))
    if programs >= _MAX_GRID:
        raise ValueError(
            f"q has shape {(B, T, H, K)}: {programs} programs of the path triton, which takes less than 2^31; "
            "split the batch"
        )


def num_sequences(cu_seqlens: Tensor) -> int:
    """N of boundaries [N + 1]; TypeError or ValueError for what is none, whatever it bounds."""
    _check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected [N + 1] with N >= 1 sequences")
    _check_dtype("cu_seqlens", cu_seqlens, _INTEGER_DTYPES)
    if under_transforms() and is_batchedtensor(cu_seqlens):
        raise ValueError("cu_seqlens cannot be mapped over by torch.vmap: all entries must be packed in the same way")
    return cu_seqlens.numel() - 1


def check_packed(cu_seqlens: Tensor, name: str, x: Tensor) -> None:
    """Checks that sequences can be packed in `x` [B, T, ...], called `name`; ValueError where not."""
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs sequences packed along T in a batch of B = 1, got B = {x.shape[0]}")
    if cu_seqlens.device != x.device:
        raise ValueError(f"cu_seqlens is on device {cu_seqlens.device}, expected {x.device}, the device of {name}")


def sequence_bounds(cu_seqlens: Tensor, num_tokens: int) -> list[int]:
    """The values of `cu_seqlens`, checked. Reads them to the host."""
    bounds = [int(b) for b in cu_seqlens.tolist()]
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {bounds[0]}")
    if bounds[-1] != num_tokens:
        raise ValueError(f"cu_seqlens must end at T = {num_tokens}, got {bounds[-1]}")
    for n, (start, end) in enumerate(pairwise(bounds)):
        if end < start:
            raise ValueError(f"cu_seqlens must not decrease, got {start} then {end} at position {n + 1}")
    return bounds
