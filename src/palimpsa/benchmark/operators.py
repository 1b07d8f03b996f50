"""The operators that are measured: random inputs, the call, one decoding step, and the formula in float64."""

# B batch, T time, H heads, K key dim, V value dim
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsa.analysis.collect.benchmark_columns import ROWS_A_GROUP
from palimpsa.kernels import palimpsa, palimpsa_reference, palimpsa_step
from palimpsa.kernels.fla.guards import guarded_chunk_simple_gla, prepare_kernels

Inputs = dict[str, Tensor]
State = tuple[Tensor, ...]
# Windows of 20 tokens and more: decay matters within the few hundred tokens of a check.
LARGEST_DECAY = 0.05


@dataclass(frozen=True)
class Shape:
    """Name and sizes of one call."""

    name: str
    B: int
    T: int
    H: int
    K: int
    V: int

    @property
    def num_elements(self) -> int:
        return self.B * self.T * self.H * self.K * self.V

    def __str__(self) -> str:
        return f"{self.name}, B {self.B}, T {self.T}, H {self.H}, K {self.K}, V {self.V}"


def linear_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None = None) -> tuple[Tensor, State]:
    """Gated linear attention, token by token: S = exp(g) S + k x w and o = K^-1/2 q S, with w = v; given `beta`, the
    gated delta rule, w = beta (v - k exp(g) S).

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        g: [B, T, H], or [B, T, H, K] for a decay of its own for every key.
        beta: [B, T, H], or None.

    Returns:
        o [B, T, H, V] and (S,) [B, H, K, V] after the last token, in the dtype of the arguments.
    """
    decay = (g if g.dim() == 4 else g[..., None]).exp()
    state = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state
        write = v[:, t]
        if beta is not None:
            write = beta[:, t, :, None] * (write - (k[:, t, :, None] @ state).squeeze(-2))
        state = state + k[:, t, :, :, None] * write[:, :, None]
        outputs.append((q[:, t, :, None] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1) * q.shape[-1] ** -0.5, (state,)


def _fla(name: str) -> Any:
    # Imported where it is called: slow, and unhappy without a GPU.
    module, _, function = name.partition(".")
    return getattr(import_module(f"fla.ops.{module}"), function)


class Operator:
    """What all operators share. Inputs are a dictionary of leaves, so that every gradient is checked and timed."""

    # Whether an element takes a reciprocal of its own.
    divides = False
    note = ""

    def shape(self, shape: Shape) -> Shape:
        """The sizes of a call that stands beside the others' calls of `shape`."""
        return shape

    def state_size(self, shape: Shape) -> int:
        """How many numbers of float32 decoding reads and writes for a token of every sequence."""
        return shape.B * shape.H * shape.K * shape.V

    def inputs(self, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        """Fresh random arguments on the generator's device: decays and the prior in float32, the others in `dtype`."""
        made = self._make(shape, generator)
        kept = ("g", "importance_prior")
        return {name: (x if name in kept else x.to(dtype)).requires_grad_() for name, x in made.items()}

    def _make(self, shape: Shape, generator: torch.Generator) -> Inputs:
        B, T, H, K, V = shape.B, shape.T, shape.H, shape.K, shape.V
        at: Any = {"device": generator.device, "generator": generator}
        return {
            "q": torch.randn(B, T, H, K, **at),
            "k": torch.randn(B, T, H, K, **at),
            "v": torch.randn(B, T, H, V, **at),
            "g": -LARGEST_DECAY * torch.rand(B, T, H, **at),
        }

    def forward(self, x: Inputs) -> Tensor:
        """o [B, T, H, V] of the operator as it is used in training."""
        raise NotImplementedError

    def reference(self, x: Inputs) -> tuple[Tensor, State]:
        """o and the final state by the definition, in the dtype of `x`."""
        raise NotImplementedError

    def prefill(self, x: Inputs) -> tuple[Tensor, State]:
        """o and the final state of the operator, as a prompt is read."""
        raise NotImplementedError

    def start(self, x: Inputs) -> State:
        """The memory before the first token, in float32: [B, H, K, V] first."""
        B, _, H, K = x["k"].shape
        return (torch.zeros(B, H, K, x["v"].shape[-1], device=x["k"].device),)

    def token(self, x: Inputs, t: int) -> Inputs:
        """Token t of `x`, as `step` takes it."""
        return {name: value[:, t : t + 1].detach() for name, value in x.items()}

    def step(self, token: Inputs, state: State) -> tuple[Tensor, State]:
        """o [B, H, V] or [B, 1, H, V] of one token, and the memory after it; may overwrite `state`."""
        raise NotImplementedError


class Palimpsa(Operator):
    """`palimpsa` and `palimpsa_step`.

    Args:
        precision: "vector", one for every row; "grouped", one for 16 rows (8 where V is no multiple of 16, and so on);
            "scalar", one a head; None, without beta.
    """

    def __init__(self, precision: Literal["vector", "grouped", "scalar"] | None) -> None:
        self.precision = precision
        self.divides = precision == "vector"

    def _num_importances(self, V: int) -> int:
        """Of each key: G."""
        return {"scalar": 1, "grouped": V // math.gcd(V, ROWS_A_GROUP)}.get(self.precision or "", V)

    def state_size(self, shape: Shape) -> int:
        return shape.B * shape.H * shape.K * (shape.V + self._num_importances(shape.V))

    def _make(self, shape: Shape, generator: torch.Generator) -> Inputs:
        x = super()._make(shape, generator)
        if self.precision is not None:
            size = (shape.B, shape.T, shape.H, self._num_importances(shape.V))
            x["beta"] = torch.rand(size, device=generator.device, generator=generator)
        # Far enough above 0 that the prior can be seen beside what is earned.
        x["importance_prior"] = 1 + torch.rand(shape.H, device=generator.device, generator=generator)
        return x

    @staticmethod
    def _arguments(x: Inputs) -> tuple[Any, ...]:
        return x["q"], x["k"], x["v"], x.get("beta"), x["g"], x["importance_prior"]

    def forward(self, x: Inputs) -> Tensor:
        return palimpsa(*self._arguments(x)).o

    def reference(self, x: Inputs) -> tuple[Tensor, State]:
        out = palimpsa_reference(*self._arguments(x), output_final_state=True)
        assert out.final_state is not None
        return out.o, tuple(out.final_state)

    def prefill(self, x: Inputs) -> tuple[Tensor, State]:
        out = palimpsa(*self._arguments(x), output_final_state=True)
        assert out.final_state is not None
        return out.o, tuple(out.final_state)

    def start(self, x: Inputs) -> State:
        (mean,) = super().start(x)
        size = (*mean.shape[:-1], self._num_importances(mean.shape[-1]))
        return mean, x["importance_prior"].detach()[:, None, None].expand(size).contiguous()

    def token(self, x: Inputs, t: int) -> Inputs:
        return {name: (value if name == "importance_prior" else value[:, t]).detach() for name, value in x.items()}

    def step(self, token: Inputs, state: State) -> tuple[Tensor, State]:
        mean, importance = state
        out = palimpsa_step(*self._arguments(token), state=(mean, importance))
        return out.o, state


class SimpleGLA(Operator):
    """Gated linear attention with one decay a head, flash-linear-attention's."""

    def forward(self, x: Inputs) -> Tensor:
        return guarded_chunk_simple_gla(x["q"].device)(x["q"], x["k"], x["v"], x["g"])[0]

    def reference(self, x: Inputs) -> tuple[Tensor, State]:
        return linear_attention(x["q"], x["k"], x["v"], x["g"])

    def prefill(self, x: Inputs) -> tuple[Tensor, State]:
        o, state = guarded_chunk_simple_gla(x["q"].device)(x["q"], x["k"], x["v"], x["g"], output_final_state=True)
        return o, (state,)

    def step(self, token: Inputs, state: State) -> tuple[Tensor, State]:
        q, k, v, g = (token[name] for name in "qkvg")
        o, new = _fla("simple_gla.fused_recurrent_simple_gla")(
            q, k, v, g, initial_state=state[0], output_final_state=True
        )
        return o, (new,)


class GLA(Operator):
    """Gated linear attention with a decay for every key, flash-linear-attention's."""

    def _make(self, shape: Shape, generator: torch.Generator) -> Inputs:
        x = super()._make(shape, generator)
        x["g"] = -LARGEST_DECAY * torch.rand(x["k"].shape, device=generator.device, generator=generator)
        return x

    def forward(self, x: Inputs) -> Tensor:
        return _fla("gla.chunk_gla")(x["q"], x["k"], x["v"], x["g"])[0]

    def reference(self, x: Inputs) -> tuple[Tensor, State]:
        return linear_attention(x["q"], x["k"], x["v"], x["g"])


class GatedDeltaNet(Operator):
    """The gated delta rule, flash-linear-attention's. Its keys must have length 1."""

    note = "q and k are L2-normalised beforehand"

    def _make(self, shape: Shape, generator: torch.Generator) -> Inputs:
        x = super()._make(shape, generator)
        x["q"], x["k"] = (functional.normalize(x[name], dim=-1) for name in "qk")
        x["beta"] = torch.rand(x["g"].shape, device=generator.device, generator=generator)
        return x

    def forward(self, x: Inputs) -> Tensor:
        prepare_kernels(x["q"].device)
        return _fla("gated_delta_rule.chunk_gated_delta_rule")(x["q"], x["k"], x["v"], x["g"], x["beta"])[0]

    def reference(self, x: Inputs) -> tuple[Tensor, State]:
        return linear_attention(x["q"], x["k"], x["v"], x["g"], x["beta"])


class SoftmaxAttention(Operator):
    """PyTorch's causal attention; on a GPU by its flash kernel, which wants q, k and v of one width."""

    note = "q, k and v are all V wide; on a GPU the flash kernel"

    def shape(self, shape: Shape) -> Shape:
        return replace(shape, K=shape.V)

    def _make(self, shape: Shape, generator: torch.Generator) -> Inputs:
        x = super()._make(shape, generator)
        return {name: x[name] for name in "qkv"}

    def forward(self, x: Inputs) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (x[name].transpose(1, 2) for name in "qkv")
        backends = [SDPBackend.FLASH_ATTENTION] if q.is_cuda else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(backends):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def reference(self, x: Inputs) -> tuple[Tensor, State]:
        q, k, v = (x[name].transpose(1, 2) for name in "qkv")
        scores = q @ k.mT * q.shape[-1] ** -0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2), ()


# The names are those of palimpsa.analysis.collect.benchmark_columns.OPERATORS.
REGISTRY: dict[str, Operator] = {
    "palimpsa": Palimpsa("vector"),
    "palimpsa_grouped": Palimpsa("grouped"),
    "palimpsa_scalar": Palimpsa("scalar"),
    "palimpsa_without_metaplasticity": Palimpsa(None),
    "simple_gla": SimpleGLA(),
    "gla": GLA(),
    "gated_deltanet": GatedDeltaNet(),
    "softmax_attention": SoftmaxAttention(),
}
