"""flash-linear-attention's simple GLA, and guards against its kernels that are compiled wrongly."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..transforms import are_batched_gradients

# Triton 3.7.1 compiles the library's kernel of dq, dk and dg for Hopper so that its configurations of four warps read
# outside of their shared memory where a tile of keys is at most this wide: wrong gradients, or an illegal access.
_MISCOMPILED_BK = 32


def guarded_chunk_simple_gla(device: torch.device) -> Any:
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


def refuse_batched_gradients(*results: Any) -> None:
    """Makes torch.autograd.grad(is_grads_batched=True) through results of the library's functions one clear error.

    Their way back hands the gradients to kernels, which read memory that those do not have.
    """
    if not torch.compiler.is_compiling():
        for x in results:
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(_refuse_batched)


def _refuse_batched(gradient: Tensor) -> None:
    if are_batched_gradients((gradient,)):
        raise NotImplementedError(
            "flash-linear-attention's kernels take no batched gradients (is_grads_batched=True): "
            "torch.func.jacrev and torch.func.vmap run on other code and do"
        )


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
