"""Operators outside of compiled code: autograd, torch.func, torch.vmap and torch.autograd.grad(is_grads_batched=True).

A rule computes an operator for all entries of a mapped dimension in one call: rule(call, size, in_dims, *args) gives
the results and the dimension of each that is mapped (None: it is not), as the rules of torch.vmap do.
"""

# X entries of a dimension that is mapped over
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor

Rule = Callable[..., tuple[Any, Any]]
# What torch.autograd.grad itself makes batched gradients with: no type checker knows them.
_FUNCTIONS: Any = torch._VF


def stand_in(
    run: Callable[..., Any],
    operator: Callable[..., Any],
    rule: Rule,
    once: str,
    autograd: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """A function that calls `operator` in compiled code, and in its place `run` elsewhere, with every transform.

    torch.func.grad knows no other way, and a call through the dispatcher takes 0.2 ms, which is most of the time of a
    small one.

    Args:
        run: what `operator` computes, of tensors with data; both take and give tensors that lie in no list.
        once: the error for who asks for a derivative that there is not.
        autograd: what `operator` keeps and how it is differentiated: save(ctx, inputs, outputs) and
            differentiate(ctx, *gradients); None: not at all.
    """
    save, differentiate = autograd or (None, refuse(once))

    class StandIn(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return run(*args) if are_plain(args) else operator(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if save is not None:
                save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return differentiate(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(once)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            return _map_any_size(rule, call, info.batch_size, in_dims, args)

    # PyTorch binds the arguments of every call to it, and it takes longer to find out than to bind.
    vars(StandIn.forward)["__signature__"] = inspect.signature(StandIn.forward)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*args)
        if are_batched_gradients(args):
            return _map_batched_gradients(rule, call, args)
        return StandIn.apply(*args)

    return call


def refuse(once: str) -> Callable[..., Any]:
    """The derivative of an operator that has none: it raises RuntimeError."""

    def differentiate(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(once)

    return differentiate


def register_rule(operator: Any, rule: Rule) -> None:
    """Makes `rule` what torch.vmap does to an operator of torch.library."""

    def mapped(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _map_any_size(rule, operator, info.batch_size, in_dims, args)

    operator.register_vmap(mapped)


def are_plain(args: tuple[Any, ...]) -> bool:
    """Whether all tensors are tensors with data, not a subclass: a fake one, say."""
    return all(type(x) in (Tensor, torch.nn.Parameter) for x in args if isinstance(x, Tensor))


def are_batched_gradients(args: tuple[Any, ...]) -> bool:
    """Whether torch.autograd.grad(is_grads_batched=True) made one of these: a tensor of another kind than vmap's."""
    return any(isinstance(x, Tensor) and is_legacy_batchedtensor(x) for x in args)


def is_mapped(x: Tensor) -> bool:
    """Whether x stands for many tensors, by vmap or torch.autograd.grad(is_grads_batched=True): it has no data."""
    return is_batchedtensor(x) or is_legacy_batchedtensor(x)


def _map_batched_gradients(rule: Rule, call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """`call` of arguments of which some are batched gradients, by the rule of vmap."""
    levels = [_level_and_size(x) if are_batched_gradients((x,)) else (0, 0) for x in args]
    # Of batched gradients that are batched themselves the inner ones first: levels can be added in their order alone.
    level, size = max(levels)
    in_dims = tuple(0 if own == level else None for own, _ in levels)
    bare = [
        x if dim is None else _FUNCTIONS._remove_batch_dim(x, level, size, 0)
        for x, dim in zip(args, in_dims, strict=True)
    ]
    results, out_dims = _map_any_size(rule, call, size, in_dims, tuple(bare))
    return tuple(
        x if dim is None else _FUNCTIONS._add_batch_dim(x, dim, level) for x, dim in zip(results, out_dims, strict=True)
    )


def _level_and_size(x: Tensor) -> tuple[int, int]:
    """The last level, from 1 on, at which x is a batched gradient, and of how many."""
    # PyTorch does not tell, and the count of levels that are open is another one on the thread of a GPU's backward.
    # Where x has no such level it is expanded to the size asked for.
    level = size = 0
    while is_legacy_batchedtensor(x):
        level += 1
        size, other = (_FUNCTIONS._remove_batch_dim(x, level, n, 0).shape[0] for n in (0, 1))
        if size == other:
            x = _FUNCTIONS._remove_batch_dim(x, level, size, 0)
    return level, size


def _map_any_size(
    rule: Rule, call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The rule's results, also where there is no entry: of one of zeros, left out again."""
    if size:
        return rule(call, size, in_dims, *args)

    def one(x: Tensor, dim: int) -> Tensor:
        return x.new_zeros(*x.shape[:dim], 1, *x.shape[dim + 1 :])

    args = tuple(
        one(x, dim) if isinstance(x, Tensor) and dim is not None else x for x, dim in zip(args, in_dims, strict=True)
    )
    results, out_dims = rule(call, 1, in_dims, *args)
    none = [x if dim is None else x.narrow(dim, 0, 0) for x, dim in zip(results, out_dims, strict=True)]
    return tuple(none), out_dims


def fold(x: Tensor | None, in_dim: int | None, size: int, dim: int) -> Tensor | None:
    """Merges the mapped dimension, X entries, into dimension `dim`: [X, B, ...] -> [X * B, ...] for dim 0."""
    if x is None:
        return None
    if in_dim is None:
        x = x.unsqueeze(dim).expand(*x.shape[:dim], size, *x.shape[dim:])
    else:
        x = x.movedim(in_dim, dim)
    # Not flatten: batched gradients of batched gradients have no rule for it.
    return x.reshape(*x.shape[:dim], x.shape[dim] * x.shape[dim + 1], *x.shape[dim + 2 :])


def unfold(x: Tensor, size: int, dim: int) -> Tensor:
    """What `fold` merged, as dimension `dim`."""
    return x.reshape(*x.shape[:dim], size, x.shape[dim] // size, *x.shape[dim + 1 :])
