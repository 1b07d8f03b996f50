"""`forward`, `backward` and `step` as PyTorch operators: what autograd, torch.compile and vmap have to know of them.

The operators take checked arguments and choose nothing: `path` is "chunked" (scan.py, and for a step reference.py)
or "triton" (gpu/). Results that were not asked for are empty tensors, because an operator's results cannot be None. v
holds at least one element. beta is [B, T, H, G] and an importance [.., K, G]: where the path has a precision for every
row, this is where those of groups are repeated, and where their results and gradients become those of groups again.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T, X a dimension that
# vmap maps over
import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from . import scan
from .groups import first_of_rows, place_in_first_rows, repeat_for_rows, suits_products, sum_over_rows
from .reference import step_in_place
from .transforms import are_plain, fold, refuse, register_rule, stand_in, unfold
from .validation import compute_dtype, under_transforms

# The folder can also be imported on its own, as `kernels`: each copy has operators of its own.
NAMESPACE = "palimpsa" if __package__ == "palimpsa.kernels" else f"palimpsa_{(__package__ or '').replace('.', '_')}"


def needs_backward(*tensors: Tensor | None) -> bool:
    """Whether autograd will follow these arguments."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """No context where none is needed: to enter one takes as long as to launch a kernel."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _zeros_if_missing(x: Tensor | None, like: Tensor | None) -> Tensor | None:
    return torch.zeros_like(like) if x is None and like is not None else x


def _forward(
    path: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    mean0: Tensor | None,
    importance0: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    num_rows: int,
    chunk_size: int,
    save: bool,
    output_final_state: bool,
    output_variance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """o, variance, mean and importance of `palimpsa`, and what `backward` starts from.

    That is the states before every chunk, or for groups in Triton sums over chunks.

    Args:
        cu_seqlens: for "triton" alone.
        num_rows, chunk_size: of scan.Plan; for "chunked" alone.
        save: whether a backward will follow. Without it a backward is right, and slower.
    """
    kept, V, G = v.new_empty(0, dtype=compute_dtype(v.dtype)), v.shape[-1], beta.shape[-1]
    by_products = path == "triton" and suits_products(V, G)
    with _no_autocast(q.device.type):
        if not by_products:
            beta, importance0 = _for_rows(beta, importance0, V)
        if path == "triton":
            tensors: Any = [_contiguous(x) for x in (q, k, v, beta, g, importance_prior)]
            states: Any = [_contiguous(x) for x in (mean0, importance0)]
            bounds: Any = _contiguous(cu_seqlens)
            options: Any = (*tensors, scale, *states, output_final_state, output_variance, bounds)
            # Triton launches on the current device.
            with torch.cuda.device_of(q):
                if by_products:
                    from .gpu import grouped

                    o, variance, mean, importance, kept = grouped.forward(*options)
                    kept = kept if save else kept.new_empty(0)
                else:
                    from .gpu import forward as triton_forward

                    o, variance, mean, importance = triton_forward.forward(*options)
        else:
            o, variance, mean, importance, kept = scan.forward(
                q, k, v, beta, g, importance_prior, mean0, importance0, scale, scan.Plan(num_rows, chunk_size),
                save, output_final_state, output_variance,
            )  # fmt: skip
    if not by_products and importance is not None:
        importance = first_of_rows(importance, G)
    variance, mean, importance = (kept.new_empty(0) if x is None else x for x in (variance, mean, importance))
    return o, variance, mean, importance, kept


def _for_rows(beta: Tensor, importance: Tensor | None, num_rows: int) -> tuple[Tensor, Tensor | None]:
    """Precisions and an importance for every row."""
    return repeat_for_rows(beta, num_rows), None if importance is None else repeat_for_rows(importance, num_rows)


def _contiguous(x: Any) -> Any:
    return None if x is None else x.contiguous()


forward = torch.library.custom_op(f"{NAMESPACE}::forward", _forward, mutates_args=())


@forward.register_fake
def _(
    path, q, k, v, beta, g, importance_prior, mean0, importance0, cu_seqlens, scale, num_rows, chunk_size, save,
    output_final_state, output_variance,
):  # fmt: skip
    (B, T, H, K), V = q.shape, v.shape[-1]
    kept = v.new_empty(0, dtype=compute_dtype(v.dtype))
    num_states = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    mean = (num_states, H, K, V) if output_final_state else (0,)
    importance = (num_states, H, K, beta.shape[-1]) if output_final_state else (0,)
    if path == "chunked" and save:
        num_chunks = (T + chunk_size - 1) // chunk_size
        size = (num_chunks * 2 * B * H * K * V,)
    elif path == "triton" and save and suits_products(V, beta.shape[-1]):
        from .gpu.grouped import count_chunks, num_kept

        size = (num_kept(B * T, count_chunks(num_states, T, cu_seqlens is not None), H, K, beta.shape[-1]),)
    else:
        size = (0,)
    variance = v.new_empty(v.shape) if output_variance else kept.new_empty(0)
    return v.new_empty(v.shape), variance, kept.new_empty(mean), kept.new_empty(importance), kept.new_empty(size)


def _backward(
    path: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    mean0: Tensor | None,
    importance0: Tensor | None,
    cu_seqlens: Tensor | None,
    mean: Tensor | None,
    importance: Tensor | None,
    kept: Tensor,
    d_o: Tensor | None,
    d_variance: Tensor | None,
    d_mean: Tensor | None,
    d_importance: Tensor | None,
    scale: float,
    num_rows: int,
    chunk_size: int,
    needs_beta: bool,
    needs_decay: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, beta, g, importance_prior, mean0 and importance0, each in its dtype.

    Args:
        mean, importance: the final state, if one of its gradients is given.
        kept: the last result of `forward`.
        needs_beta: whether beta's gradient is wanted.
        needs_decay: whether g's or the prior's is.
    """
    inputs = (q, k, v, beta, g, importance_prior, mean0, importance0)
    V, G = v.shape[-1], beta.shape[-1]
    by_products = path == "triton" and suits_products(V, G)
    with _no_autocast(q.device.type):
        if G < V and not by_products:
            # In the dtype of the recurrence: what comes back is added over a group before it is rounded.
            beta, importance0 = _for_rows(beta.to(compute_dtype(q.dtype)), importance0, V)
            importance = None if importance is None else repeat_for_rows(importance, V)
            d_importance = None if d_importance is None else place_in_first_rows(d_importance, V)
        if path == "triton":
            if d_mean is not None or d_importance is not None:
                d_mean, d_importance = _zeros_if_missing(d_mean, mean), _zeros_if_missing(d_importance, importance)
            d_o = torch.zeros_like(v) if d_o is None else d_o
            tensors: Any = [_contiguous(x) for x in (q, k, v, beta, g, importance_prior)]
            states: Any = [_contiguous(x) for x in (mean0, importance0, mean, importance)]
            flows: Any = [_contiguous(x) for x in (d_o, d_variance, d_mean, d_importance)]
            bounds: Any = _contiguous(cu_seqlens)
            with torch.cuda.device_of(q):
                if by_products:
                    from .gpu import grouped_backward

                    gradients = grouped_backward.backward(*tensors, scale, *states, bounds, kept, *flows)
                else:
                    from .gpu import backward as triton_backward

                    gradients = triton_backward.backward(*tensors, scale, *states, bounds, *flows)
        else:
            gradients = scan.backward(
                q, k, v, beta, g, importance_prior, mean0, importance0, mean, importance, kept,
                d_o, d_variance, d_mean, d_importance, scale, scan.Plan(num_rows, chunk_size), needs_beta, needs_decay,
            )  # fmt: skip
    results, wanted = [], _wanted(mean0 is not None, needs_beta, needs_decay)
    for x, grad, want in zip(inputs, gradients, wanted, strict=True):
        if not want or x is None or grad is None:
            results.append(q.new_empty(0))
            continue
        # beta's and the initial importance's are one for every row.
        grad = sum_over_rows(grad, G) if grad.shape[-1:] != x.shape[-1:] else grad
        results.append(grad.to(x.dtype))
    # A tuple of any length to a type checker, of eight here.
    return tuple(results)  # type: ignore[return-value]


def _wanted(has_state: bool, needs_beta: bool, needs_decay: bool) -> tuple[bool, ...]:
    """Which results of `backward` are more than an empty tensor."""
    return True, True, True, needs_beta, needs_decay, needs_decay, has_state, has_state


backward = torch.library.custom_op(f"{NAMESPACE}::backward", _backward, mutates_args=())


@backward.register_fake
def _(
    path, q, k, v, beta, g, importance_prior, mean0, importance0, cu_seqlens, mean, importance, kept,
    d_o, d_variance, d_mean, d_importance, scale, num_rows, chunk_size, needs_beta, needs_decay,
):  # fmt: skip
    inputs = (q, k, v, beta, g, importance_prior, mean0, importance0)
    wanted = _wanted(mean0 is not None, needs_beta, needs_decay)
    return tuple(x.new_empty(x.shape) if want else q.new_empty(0) for want, x in zip(wanted, inputs, strict=True))


_ONCE = (
    "palimpsa is differentiable once, and backwards: its gradients have no graph (create_graph=True), and it has no "
    "forward mode (jvp, jacfwd). palimpsa_reference, or PALIMPSA_PATH=reference, has both"
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    path, *tensors, scale, num_rows, chunk_size, _, output_final_state, output_variance = inputs
    _, variance, mean, importance, kept = output
    final = (mean, importance) if output_final_state else (None, None)
    ctx.save_for_backward(*tensors, *final, kept)
    ctx.path, ctx.options = path, (scale, num_rows, chunk_size)
    empty = (*(() if output_variance else (variance,)), *(() if output_final_state else (mean, importance)))
    ctx.mark_non_differentiable(kept, *empty)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_o: Any, d_variance: Any, d_mean: Any, d_importance: Any, _: Any) -> tuple[Any, ...]:
    # torch.func.grad always asks for a graph; there, and under compilation, the error comes when the graph is used.
    # Elsewhere at once: where the incoming gradient is a constant, nobody might notice before.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not under_transforms():
        raise RuntimeError(_ONCE)
    *tensors, mean, importance, kept = ctx.saved_tensors
    # path, then the arguments of `tensors`.
    needs = ctx.needs_input_grad[1 : 1 + len(tensors)]
    if d_mean is None and d_importance is None:
        mean = importance = None
    gradients = call_backward(
        ctx.path, *tensors, mean, importance, kept, d_o, d_variance, d_mean, d_importance, *ctx.options,
        needs[3], needs[4] or needs[5],
    )  # fmt: skip
    found = [grad if need else None for grad, need in zip(gradients, needs, strict=False)]
    return None, *found, *[None] * 7


forward.register_autograd(_differentiate, setup_context=_save)


backward.register_autograd(refuse(_ONCE))

# The dimension of the heads in each tensor argument.
_HEADS_OF_SEQUENCE, _HEADS_OF_STATE, _HEADS_OF_PRIOR = 2, 1, 0
_SEQUENCES, _STATES = (_HEADS_OF_SEQUENCE,) * 5, (_HEADS_OF_STATE,) * 2
_FORWARD_HEADS = (*_SEQUENCES, _HEADS_OF_PRIOR, *_STATES)


def _map_forward(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], path: str, *args: Any) -> Any:
    """The rule of torch.vmap: one `call` of the forward with the mapped dimension folded into another."""
    *tensors, cu_seqlens, scale, num_rows, chunk_size, _, output_final_state, output_variance = args
    dims = in_dims[1:9]
    # Batch rows are the cheapest place, but they share their prior and, packed, there is only one.
    into_rows = cu_seqlens is None and dims[5] is None
    where = (0,) * 8 if into_rows else _FORWARD_HEADS
    folded = [
        x if into_rows and i == 5 else fold(x, in_dim, size, dim)
        for i, (x, in_dim, dim) in enumerate(zip(tensors, dims, where, strict=True))
    ]
    num_rows = num_rows if into_rows else max(1, num_rows // size)
    # What the backward could start from cannot be cut into the entries again: it is computed anew.
    o, variance, mean, importance, kept = call(
        path, *folded, cu_seqlens, scale, num_rows, chunk_size, False, output_final_state, output_variance
    )
    results, out_dims = [], []
    for x, dim, present in (
        (o, where[0], True),
        (variance, where[0], output_variance),
        (mean, where[6], output_final_state),
        (importance, where[6], output_final_state),
    ):
        results.append(unfold(x, size, dim) if present else x)
        out_dims.append(dim if present else None)
    return (*results, kept), (*out_dims, None)


def _map_backward(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], path: str, *args: Any) -> Any:
    """The rule of torch.vmap: one `call` of the backward with the mapped dimension folded into the heads."""
    *tensors, scale, num_rows, chunk_size, needs_beta, needs_decay = args
    inputs, cu_seqlens, final, kept, flows = tensors[:8], tensors[8], tensors[9:11], tensors[11], tensors[12:]
    dims = in_dims[1:]

    def folded(some: list[Tensor | None], first: int, where: tuple[int, ...]) -> list[Tensor | None]:
        own = dims[first : first + len(some)]
        return [fold(x, in_dim, size, dim) for x, in_dim, dim in zip(some, own, where, strict=True)]

    # Always into the heads: every entry has a gradient of its own for the prior.
    gradients = call(
        path,
        *folded(inputs, 0, _FORWARD_HEADS),
        cu_seqlens,
        *folded(final, 9, _STATES),
        kept.new_empty(0),
        *folded(flows, 12, (_HEADS_OF_SEQUENCE,) * 2 + _STATES),
        scale, max(1, num_rows // size), chunk_size, needs_beta, needs_decay,
    )  # fmt: skip
    wanted = _wanted(inputs[6] is not None, needs_beta, needs_decay)
    pairs = list(zip(gradients, _FORWARD_HEADS, wanted, strict=True))
    results = tuple(unfold(x, size, dim) if want else x for x, dim, want in pairs)
    return results, tuple(dim if want else None for _, dim, want in pairs)


register_rule(forward, _map_forward)
register_rule(backward, _map_backward)
call_forward = stand_in(_forward, forward, _map_forward, _ONCE, (_save, _differentiate))
call_backward = stand_in(_backward, backward, _map_backward, _ONCE)


def _step(
    path: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    mean: Tensor,
    importance: Tensor,
    scale: float,
    output_variance: bool,
) -> tuple[Tensor, Tensor]:
    """o and variance of `palimpsa_step`; writes into mean and importance."""
    with _no_autocast(q.device.type):
        if path == "triton":
            from .gpu import step as triton_step

            with torch.cuda.device_of(q):
                o, variance = triton_step.step(
                    q, k, v, beta, g, importance_prior, mean, importance, scale, output_variance
                )
        else:
            o, variance = step_in_place(q, k, v, beta, g, importance_prior, mean, importance, scale, output_variance)
    return o, v.new_empty(0) if variance is None else variance


step = torch.library.custom_op(f"{NAMESPACE}::step", _step, mutates_args=("mean", "importance"))


@step.register_fake
def _(path, q, k, v, beta, g, importance_prior, mean, importance, scale, output_variance):
    return v.new_empty(v.shape), v.new_empty(v.shape if output_variance else (0,))


def call_step(path: str, *args: Any) -> tuple[Tensor, Tensor]:
    """`step` by the fastest way there is here."""
    if torch.compiler.is_compiling() or not are_plain(args):
        return step(path, *args)
    mean, importance = args[6:8]
    if under_transforms():
        if path == "triton":
            raise NotImplementedError("palimpsa_step under torch.func needs PALIMPSA_PATH=chunked: Triton has no rule")
        is_mapped = any(is_batchedtensor(x) for x in args if isinstance(x, Tensor))
        for name, x in (("mean", mean), ("importance", importance)):
            if is_mapped and not is_batchedtensor(x):
                raise ValueError(
                    f"state.{name} is not mapped over by torch.vmap, but another argument is: it is updated in place, "
                    "and every entry needs its own"
                )
    if path == "triton" and not mean.is_inference():
        # So that autograd notices if it kept one of them; PyTorch's own operations do that by themselves.
        torch.autograd.graph.increment_version((mean, importance))
    return _step(path, *args)
