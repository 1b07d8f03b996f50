"""What flows where in a mixer, read off the module itself: Figure 1 is drawn from it."""

# B batch, T time, D model width

from __future__ import annotations

import copy
import inspect
import operator
import sys
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from palimpsa.kernels import palimpsa
from palimpsa.mixers import Mixer
from palimpsa.mixers.layers import Decay, GatedRMSNorm, ShortConvolution, at_least_fp32, l2_normalise
from palimpsa.mixers.plasticity import ConstantPlasticity, Plasticity

# Functions that are boxes of their own; everything else only reshapes, casts or picks a part.
_FUNCTIONS: dict[Any, str] = {
    operator.mul: "×",
    operator.add: "+",
    torch.sigmoid: "sigmoid",
    l2_normalise: "L2 norm",
    palimpsa: "Palimpsa",
}
_OPERANDS = tuple(inspect.signature(palimpsa).parameters)


class _Tracer(fx.Tracer):
    """Takes every submodule, the operator and a cast that looks at its dtype as one box."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__(autowrap_functions=(palimpsa, l2_normalise, at_least_fp32))
        # It would look for them in the module of `forward` alone, which is that of a base class.
        self._autowrap_search += [sys.modules[one.__module__] for one in type(mixer).__mro__ if issubclass(one, Mixer)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def data_flow(mixer: Mixer) -> list[dict[str, Any]]:
    """The boxes of a mixer's forward, in the order in which they are computed.

    Args:
        mixer: Palimpsa-D, Palimpsa-M or another mixer whose `forward` can be traced (no branch on values).

    Returns:
        One dictionary a box: name; kind ("input", "module", "function", "output"); label; width, the numbers a token
        that leave it, or None where several tensors do; inputs, a list of {"from": name, "as": what the operator calls
        it, or ""}. The first box is the input "x" and the last the output "y".
    """
    graph = _Tracer(mixer).trace(mixer, concrete_args={"cache": None, "cu_seqlens": None})
    # One short context tells the widths, with zeros for weights that may not have been drawn yet.
    copied = copy.deepcopy(mixer)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        ShapeProp(fx.GraphModule(copied, graph)).propagate(
            next(copied.parameters()).new_zeros(1, 2, mixer.d_model), None, None
        )
    boxes = []
    for node in graph.nodes:
        box = _box(node, mixer)
        if box is not None:
            boxes.append(box)
    return boxes


def _box(node: fx.Node, mixer: Mixer) -> dict[str, Any] | None:
    if node.op == "placeholder":
        if node.name != "x":
            return None
        return _described(node, "input", "x", [])
    if node.op == "output":
        return {**_described(node, "output", "y", [(node.args[0], "")]), "name": "y"}
    if node.op == "call_module":
        label = _module_label(mixer.get_submodule(str(node.target)))
        return _described(node, "module", label, [(x, "") for x in node.args])
    if node.op != "call_function" or node.target not in _FUNCTIONS:
        return None
    label = _FUNCTIONS[node.target]
    names = _OPERANDS if node.target is palimpsa else [""] * len(node.args)
    inputs = list(zip(node.args, names, strict=False))
    parameters = [
        str(source.target) for x, _ in inputs if (source := _source(x)) is not None and source.op == "get_attr"
    ]
    if node.target is not palimpsa:
        label = " ".join([label, *parameters])
    return _described(node, "function", label, inputs)


def _described(node: fx.Node, kind: str, label: str, inputs: list[tuple[Any, str]]) -> dict[str, Any]:
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    sources = [(_source(x), name) for x, name in inputs]
    return {
        "name": node.name,
        "kind": kind,
        "label": label,
        "width": None if shape is None else int(shape[2:].numel()),
        "inputs": [{"from": s.name, "as": name} for s, name in sources if s is not None and s.op != "get_attr"],
    }


def _source(x: Any) -> fx.Node | None:
    """The box or parameter that `x` comes from, through reshapes, casts and parts of tuples; None for a constant."""
    while isinstance(x, fx.Node):
        if x.op in ("placeholder", "call_module", "get_attr"):
            return x
        if x.op == "call_function" and x.target in _FUNCTIONS:
            return x
        # Of the casts `y.to(z.dtype)` the first argument is the one that flows.
        x = x.args[0]
    return None


def _module_label(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features} → {module.out_features}"
    if isinstance(module, ShortConvolution):
        return f"convolution {module.width}, SiLU"
    if isinstance(module, Decay):
        return "d, g = −A d"
    if isinstance(module, Plasticity):
        return f"plasticity, rank {module.down.out_features}"
    if isinstance(module, ConstantPlasticity):
        return "constant plasticity"
    if isinstance(module, GatedRMSNorm):
        return "gate, RMSNorm" if module.gate_first else "RMSNorm, gate"
    return type(module).__name__
