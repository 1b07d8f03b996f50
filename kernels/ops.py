"""The public operators, and the choice of the path that computes them."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from .chunked import no_tokens, palimpsa_chunked, zero_precisions
from .library import call_forward, call_step, needs_backward
from .linear import linear_attention
from .reference import palimpsa_reference
from .types import PalimpsaOutput, PalimpsaState
from .validation import (
    check_sequence_inputs,
    check_step_inputs,
    check_triton_sizes,
    check_triton_values,
    debug_enabled,
    sequence_bounds,
    under_transforms,
)

# Triton is published for Linux only.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_SETTINGS = ("reference", "chunked", "triton")
_DEFAULT_PATH = "chunked"
# Device type -> path, where the default is not the best one.
_PATH_OF_DEVICE = {"cuda": "triton"}


def _choose_path(device: torch.device, dtype: torch.dtype) -> str:
    setting = os.environ.get("PALIMPSA_PATH")
    if setting and setting not in _SETTINGS:
        raise ValueError(
            f"the environment variable PALIMPSA_PATH is {setting!r}, expected one of {', '.join(_SETTINGS)}"
        )
    if not setting and dtype == torch.float64:
        return _DEFAULT_PATH
    path = setting or _PATH_OF_DEVICE.get(device.type, _DEFAULT_PATH)
    if path == "triton":
        reason = _why_not_triton(device.type, dtype)
        if reason:
            raise ValueError(
                f"the path triton ({'PALIMPSA_PATH' if setting else 'the default on ' + device.type}) {reason}; "
                "PALIMPSA_PATH=chunked computes the same"
            )
    return path


def _why_not_triton(device_type: str, dtype: torch.dtype) -> str:
    """What keeps the Triton kernels from running, empty if nothing does."""
    if dtype == torch.float64:
        return "computes in float32, but q has dtype float64"
    if not _HAS_TRITON:
        return "needs the package triton, which is not installed"
    if device_type == "cuda":
        return ""
    from .gpu.primitives import INTERPRETED

    if device_type == "cpu" and INTERPRETED:
        return ""
    return f"cannot run on device {device_type} (on cpu with TRITON_INTERPRET=1 only, set before triton is imported)"


def _palimpsa_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    *,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    output_variance: bool = False,
    cu_seqlens: Tensor | None = None,
) -> PalimpsaOutput:
    """`palimpsa` by the Triton kernels; without beta and initial state, in half precision, by another library's."""
    scale, state = check_sequence_inputs(q, k, v, beta, g, importance_prior, scale, initial_state, cu_seqlens)
    B, T, H, K = q.shape
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    check_triton_sizes(B, T, H, K, v.shape[-1], N)
    if debug_enabled(q.device):
        check_triton_values(importance_prior, state)
        if cu_seqlens is not None:
            sequence_bounds(cu_seqlens, T)
    if cu_seqlens is not None:
        # Smaller integers could not hold the sums that are taken of them.
        cu_seqlens = cu_seqlens if cu_seqlens.dtype in (torch.int32, torch.int64) else cu_seqlens.long()
    with torch.autocast(q.device.type, enabled=False):
        if v.numel() == 0:
            return no_tokens(q, k, v, beta, g, importance_prior, N, state, output_final_state, output_variance)
        # In float32 the library multiplies in tf32, its kernels do not run in Triton's interpreter, and torch.func has
        # no rules for them: there ours take zeros for beta.
        if beta is None and state is None and q.is_cuda and q.dtype != torch.float32 and not under_transforms():
            return linear_attention(
                q, k, v, g, importance_prior, scale, output_final_state, output_variance, cu_seqlens
            )
        beta = zero_precisions(v, state) if beta is None else beta
        mean, importance = (None, None) if state is None else state
        tensors = (q, k, v, beta, g, importance_prior, mean, importance)
        o, variance, mean, importance, _ = call_forward(
            "triton", *tensors, cu_seqlens, scale, 1, 1, needs_backward(*tensors),
            output_final_state, output_variance,
        )  # fmt: skip
    return PalimpsaOutput(
        o,
        variance if output_variance else None,
        PalimpsaState(mean, importance) if output_final_state else None,
    )


_PATHS: dict[str, Callable[..., PalimpsaOutput]] = {
    "reference": palimpsa_reference,
    "chunked": palimpsa_chunked,
    "triton": _palimpsa_triton,
}


def palimpsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    *,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    output_variance: bool = False,
    cu_seqlens: Tensor | None = None,
) -> PalimpsaOutput:
    r"""Writes T tokens into a Bayesian memory and reads it after each of them.

    Eq. 25-26 of arXiv 2602.09075, for each head, elementwise over the [K, V] memory (x is the outer product):

        alpha_t = exp(g_t)
        I_t     = alpha_t I_{t-1} + (1 - alpha_t) I_prior + k_t^2 x beta_t      importance: Eq. 25
        mu_t    = (alpha_t I_{t-1} mu_{t-1} + k_t x v_t) / I_t                  mean: Eq. 26
        o_t     = scale q_t mu_t
        var_t   = scale^2 q_t^2 (1 / I_t)

    The memory starts at mu = 0, I = I_prior, or at `initial_state`. Differentiable once in every tensor argument,
    through every output.

    Args:
        q, k: [B, T, H, K], queries and keys: float64, float32, bfloat16 or float16.
        v: [B, T, H, V], values, already weighted by their input gate; q's dtype.
        beta: [B, T, H, G], >= 0, the observation precision: how strongly a token consolidates each row. q's dtype
            or float32. G is a divisor of V, and precision j serves V / G rows, j V / G up to (j + 1) V / G: G = V has
            one for every row, the published form; G = 1 has one a head. The result is that of beta repeated over its
            rows, from an importance of K G numbers a head instead of K V: the state of G = 1 is K V + K numbers.
            None means 0: importance is never earned. Without an initial state that is simple gated
            linear attention divided by I_prior: in half precision on a GPU by flash-linear-attention, at its cost (to
            be installed with it, and as exact as it is). In float32, which the library would round to tf32, and with
            an initial state, where importance returns from what it was to the prior, beta = 0 is what runs.
        g: [B, T, H], <= 0, natural log of the decay of one token. Float32 (or float64 with float64 inputs). The
            memory's window is 1 / (1 - exp(g)) tokens; 0 never forgets; -inf resets the memory to the prior
            before the token is written.
        importance_prior: [H], > 0, importance of the prior; any floating dtype. On a GPU importances must stay between
            1e-15 and 1e14, where the product of two is a float32, and an initial one far below the prior loses as many
            digits as it is smaller: the memory is kept as importance minus prior.
        scale: a finite number; K ** -0.5 by default.
        initial_state: a PalimpsaState or any pair (mean, importance), [B, H, K, V] and [B, H, K, G], or [N, H, K, V]
            and [N, H, K, G] with `cu_seqlens`; float32 or float64, importance > 0. With beta=None, G is any divisor.
        output_final_state: also return the memory after the last token.
        output_variance: also return var.
        cu_seqlens: [N + 1] integers that start at 0, end at T and do not decrease: token cu_seqlens[n] up to
            cu_seqlens[n + 1] is sequence n, which starts from its own state. Needs B = 1. A sequence may be empty.

    Returns:
        PalimpsaOutput(o, variance, final_state): o and variance [B, T, H, V] in v's dtype; final_state
        [B, H, K, V] and [B, H, K, G] (N for B) float32, float64 for float64 inputs, with the G of beta, or without it
        that of the initial state, or V. What was not asked for is None.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected. Values (signs, NaN, infinities)
            are checked when the environment variable PALIMPSA_DEBUG is 1, or unset and the tensors are on the CPU.
        ImportError: beta is None in half precision on a GPU, and flash-linear-attention is not installed.

    What computes it: `triton` on CUDA devices, up to K = V = 256; `chunked`, plain PyTorch, on all others and for
    float64 inputs. The environment variable PALIMPSA_PATH = reference | chunked | triton forces one, and an input that
    it cannot take is an error. Both compute in float32; but on a GPU groups of 16 rows and more run on products of
    matrices of q's dtype, and kernels/README.md has what is rounded there. A gradient of g is a sum of terms of both
    signs, and exact beside their sizes.

    Both have torch.compile, torch.func and torch.vmap rules (vmap over every tensor but cu_seqlens), and take
    torch.autograd.grad(is_grads_batched=True). On CUDA nothing waits for the device, so that a CUDA graph can be
    captured, and the backward computes the memory again instead of keeping it. Two exceptions, for
    flash-linear-attention's kernels: they are a break in a compiled graph and refuse is_grads_batched, and under
    torch.func zeros for beta are what runs; and cu_seqlens is read by the host there and by `chunked`.

    Example:
        >>> import torch
        >>> B, T, H, K, V = 2, 5, 3, 4, 6
        >>> q, k, v = torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, H, V)
        >>> beta, g, prior = torch.rand(B, T, H, V), -torch.rand(B, T, H), torch.ones(H)
        >>> out = palimpsa(q, k, v, beta, g, prior, output_final_state=True)
        >>> out.o.shape, out.final_state.mean.shape, out.variance
        (torch.Size([2, 5, 3, 6]), torch.Size([2, 3, 4, 6]), None)
        >>> half = [x[:, :3] for x in (q, k, v, beta, g)], [x[:, 3:] for x in (q, k, v, beta, g)]
        >>> state = palimpsa(*half[0], prior, output_final_state=True).final_state
        >>> rest = palimpsa(*half[1], prior, initial_state=state)
        >>> torch.allclose(rest.o, out.o[:, 3:], atol=1e-6)
        True

        One precision a head:

        >>> one = beta.mean(-1, keepdim=True)
        >>> out = palimpsa(q, k, v, one, g, prior, output_final_state=True)
        >>> out.final_state.mean.shape, out.final_state.importance.shape
        (torch.Size([2, 3, 4, 6]), torch.Size([2, 3, 4, 1]))
        >>> torch.allclose(out.o, palimpsa(q, k, v, one.expand_as(beta), g, prior).o, atol=1e-6)
        True
    """
    # What is not a tensor is refused by any path.
    path = _choose_path(q.device, q.dtype) if isinstance(q, Tensor) else _DEFAULT_PATH
    return _PATHS[path](
        q,
        k,
        v,
        beta,
        g,
        importance_prior,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        output_variance=output_variance,
        cu_seqlens=cu_seqlens,
    )


def palimpsa_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    state: tuple[Tensor, Tensor],
    *,
    scale: float | None = None,
    output_variance: bool = False,
) -> PalimpsaOutput:
    """One token of `palimpsa` for decoding: updates `state` in place and reads it.

    Same equations, ranges, dtypes and paths as `palimpsa`; here beta=None needs no other library. No backward: run it
    under `torch.no_grad()`.

    Args:
        q, k: [B, H, K].
        v: [B, H, V].
        beta: [B, H, G], G a divisor of V, or None.
        g: [B, H], <= 0.
        importance_prior: [H], > 0.
        state: (mean, importance), [B, H, K, V] and [B, H, K, G], float32 (float64 for float64 inputs): the
            `final_state` of `palimpsa` or of the step before. Overwritten. On a GPU each number is read and written
            once, so that with G = 1 a step moves half of the bytes that it moves with G = V.
        scale: a finite number; K ** -0.5 by default.
        output_variance: also return var.

    Returns:
        PalimpsaOutput(o, variance, final_state): o and variance [B, H, V] in v's dtype; final_state holds the two
        tensors of `state`.

    Raises:
        TypeError, ValueError: as `palimpsa`; also when grad mode is on and an argument requires grad.

    Example:
        >>> import torch
        >>> state = PalimpsaState(torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1))
        >>> q = k = torch.tensor([[[1.0, 0.0]]])
        >>> v, beta, g = torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1)
        >>> [palimpsa_step(q, k, v, beta, g, torch.ones(1), state, scale=1.0).o.item() for _ in range(3)]
        [0.5, 0.6666666865348816, 0.75]
    """
    scale, state = check_step_inputs(q, k, v, beta, g, importance_prior, scale, state)
    path = _choose_path(q.device, q.dtype)
    if path == "triton":
        B, H, K = q.shape
        check_triton_sizes(B, 1, H, K, v.shape[-1], B)
    o, variance = call_step(path, q, k, v, beta, g, importance_prior, *state, scale, output_variance)
    return PalimpsaOutput(o, variance if output_variance else None, state)
