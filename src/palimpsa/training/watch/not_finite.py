"""Where in a model numbers stop being numbers: in which layer of the forward pass, or of the backward one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def first_layer_not_finite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Goes through a forward pass once more and says where its first NaN or infinity is.

    Args:
        model: whose layers are named as its parameters are.
        forward: calls it, once or several times.

    Returns:
        In words, the first parameter that is no number, or else the innermost layer that is the first to hand on
        something that is none; None where all are numbers.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(_own_part(parameter)):
            return f"first in the parameter {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not found and not all(_is_finite(x) for x in _tensors(output)):
                found.append(name)

        return look

    handles = [layer.register_forward_hook(watch(name)) for name, layer in model.named_modules() if name]
    try:
        # Compiled code knows nothing of hooks.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return f"first in the output of {found[0]}" if found else None


def gradient_not_finite(model: nn.Module) -> str | None:
    """In words, the parameter of the last layer whose gradient is no number: the backward pass comes there first."""
    wrong = [name for name, gradient in gradients(model) if not _is_finite(gradient)]
    return f"first in the gradient of {wrong[-1]}" if wrong else None


def largest_gradient(model: nn.Module) -> str:
    """In words, the parameter with the largest gradient."""
    norms = {name: float(gradient.double().norm()) for name, gradient in gradients(model)}
    if not norms:
        return "no parameter has a gradient"
    name = max(norms, key=norms.__getitem__)
    return f"the largest gradient is that of {name}, of norm {norms[name]:.3g}"


def layer_that_raised(model: nn.Module, error: BaseException) -> str:
    """In words, the innermost layer of a model in which an error was raised."""
    names = {id(layer): name for name, layer in model.named_modules() if name}
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    inside = [names[id(one)] for one in frames if id(one) in names]
    return f"in {inside[-1]}" if inside else "outside of all layers"


def gradients(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Of each parameter that has one; of sharded parameters, this process's part."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, _own_part(parameter.grad)


def _own_part(x: Tensor) -> Tensor:
    return getattr(x, "to_local", lambda: x)()


def _is_finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x).all())


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors(one)
