"""flash-linear-attention's simple GLA, and what stands before every call of the library's kernels."""

# B batch, T time, H heads, K key dim, V value dim, N sequences
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..transforms import is_mapped
from .tuning import compile_candidates_side_by_side

# Triton 3.7.1 compiles the library's kernel of dq, dk and dg for Hopper so that its configurations of four warps read
# outside of their shared memory where a tile of keys is at most this wide: wrong gradients, or an illegal access. With
# wider tiles none does: on an H200 all were held to float64 at K 64, V 128, and the chosen ones at other heads.
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
    prepare_kernels(device)
    return chunk_simple_gla


# In half precision, kernels of the library whose heads are of odd width read outside of their shared memory: some it
# refuses by an assertion, on the way back alone.
_EVEN_WIDTH = 16


def call_padded(
    kernel: Callable[..., Any],
    operands: Sequence[Tensor],
    *,
    scale: float,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    least_values: int = 1,
) -> tuple[Tensor, Any]:
    """`kernel` of operands and a state with zeros beside them where it wants wider heads: they change nothing.

    Args:
        kernel: of the library: takes `operands`, and all but the last of the others by their names.
        operands: q, k [B, T, H, K], v [B, T, H, V], and others, which are [B, T, H, K] or [B, T, H].
        initial_state: [N, H, K, V], or None.
        least_values: the smallest V that the kernel takes.

    Returns:
        o [B, T, H, V], and the states after the last tokens, [N, H, K, V], or None.
    """
    q, _, v, *_ = operands
    is_half, K, V = q.element_size() == 2, q.shape[-1], v.shape[-1]
    more_k, more_v = (-width % _EVEN_WIDTH if is_half and width % 2 else 0 for width in (K, V))
    more_v = max(more_v, least_values - V)
    if more_k or more_v:
        operands = [x if x.ndim < 4 else F.pad(x, (0, more_v if i == 2 else more_k)) for i, x in enumerate(operands)]
        initial_state = None if initial_state is None else F.pad(initial_state, (0, more_v, 0, more_k))
    o, final = kernel(
        *operands,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
    if more_k or more_v:
        o, final = o[..., :V], None if final is None else final[..., :K, :V]
    refuse_batched_gradients(o, final)
    return o, final


def refuse_batched_gradients(*results: Any) -> None:
    """Makes batched gradients through results of the library's functions one clear error.

    Their way back hands the gradients to kernels, which read memory that those do not have.
    """
    if not torch.compiler.is_compiling():
        for x in results:
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(_refuse_batched)


def _refuse_batched(gradient: Tensor) -> None:
    if is_mapped(gradient):
        raise NotImplementedError(
            "flash-linear-attention takes no batched gradients (is_grads_batched=True, vmap of autograd.grad): "
            "torch.func.jacrev, and torch.func.vmap of the whole function, run on other code and do"
        )


def prepare_kernels(device: torch.device) -> None:
    """Call it before any chunked operator of the library: on a GPU its candidates are compiled side by side.

    On Hopper those of the kernel of dq, dk and dg that are compiled wrongly are left out: simple GLA and both delta
    rules run it.
    """
    _prepare_kernels(device)


# Called when code is compiled, and not by what is compiled: torch.compiler.assume_constant_result, without its import,
# which takes seconds and brings Triton.
prepare_kernels.__dict__["_dynamo_marked_constant"] = True


# Once a device: what it does lasts, and it stands before every call.
@functools.cache
def _prepare_kernels(device: torch.device) -> None:
    if device.type != "cuda":
        return
    compile_candidates_side_by_side()
    if torch.cuda.get_device_capability(device)[0] == 9:
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
