"""Without beta and from the prior: simple gated linear attention by flash-linear-attention, divided by the prior."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from .types import PalimpsaOutput, PalimpsaState

# exp(-100) is the smallest number of float32 and below. The library takes differences of sums of g: -inf would become
# NaN, and a number of larger size would round what stands beside it.
_RESET = -100.0


# Triton 3.7.1 compiles the library's kernel of dq, dk and dg for Hopper so that its configurations of four warps read
# outside of their shared memory where a tile of keys is at most this wide: wrong gradients, or an illegal access.
_MISCOMPILED_BK = 32


def simple_gla(device: torch.device) -> Any:
    """flash-linear-attention's `chunk_simple_gla`, kept from the configurations that are compiled wrongly on `device`.

    Raises:
        ImportError: flash-linear-attention is not installed.
    """
    try:
        # Here and not above: the import takes seconds, and nothing else needs it.
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as error:
        raise ImportError(
            "beta=None in half precision on a GPU runs on flash-linear-attention, which cannot be imported here: "
            "pip install flash-linear-attention==0.6.0"
        ) from error
    avoid_miscompiled_backward(device)
    return chunk_simple_gla


def avoid_miscompiled_backward(device: torch.device) -> None:
    """Call it before any chunked operator of the library whose way back runs its kernel of dq, dk and dg on `device`.

    Those are simple GLA, the delta rule and the gated delta rule. Off Hopper it does nothing.
    """
    _avoid_miscompiled_backward(device)


# Called when code is compiled, and not by what is compiled: torch.compiler.assume_constant_result, without its import,
# which takes seconds and brings Triton.
avoid_miscompiled_backward.__dict__["_dynamo_marked_constant"] = True


# Once a device: what it does lasts, and it stands before every call.
@functools.cache
def _avoid_miscompiled_backward(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        # The type checker takes it for the module of another backend.
        chunk_o: Any = importlib.import_module("fla.ops.common.chunk_o")
        keep_right_configurations(chunk_o.chunk_bwd_kernel_dqkwg.fn)


def keep_right_configurations(autotuner: Any) -> None:
    """Keeps the kernel of dq, dk and dg to two warps where four are compiled wrongly; more than once is fine."""

    def prune(configurations: list[Any], arguments: dict[str, Any], **options: Any) -> list[Any]:
        if options["BK"] > _MISCOMPILED_BK:
            return configurations
        return [configuration for configuration in configurations if configuration.num_warps < 4]

    autotuner.early_config_prune = prune


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    scale: float,
    output_final_state: bool,
    output_variance: bool,
    cu_seqlens: Tensor | None,
) -> PalimpsaOutput:
    """`palimpsa` for beta = None and no initial state, on a GPU, in half precision.

    The importance is the prior for ever, so that M = I_prior mu follows a linear recurrence, the output is
    scale q M / I_prior, and the variance is scale^2 q^2 / I_prior.

    Raises:
        ImportError: flash-linear-attention is not installed.
    """
    bounds = None if cu_seqlens is None else cu_seqlens.long()
    run = simple_gla(q.device)
    o, M = run(q, k, v, g.clamp(min=_RESET), scale=scale, output_final_state=output_final_state, cu_seqlens=bounds)
    prior = importance_prior.float()[:, None]
    variance = state = None
    if output_variance:
        variance = (scale * q.float()).square().sum(-1, keepdim=True) / prior
        variance = variance.expand(v.shape).to(v.dtype, copy=True)
    if output_final_state:
        importance = prior[..., None].expand(M.shape).clone()
        state = PalimpsaState(M / importance, importance)
    return PalimpsaOutput((o / prior).to(v.dtype), variance, state)
