"""The token embedding."""

# V vocabulary, D width

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from palimpsa.kernels.transforms import stand_in
from palimpsa.kernels.validation import under_transforms


class TokenEmbedding(nn.Embedding):
    """tokens [...] int64 in [0, V) -> rows [..., D] of the weight [V, D].

    On a GPU its gradient is summed by a kernel of its own (kernels/gpu/embedding.py), in the same order in every run.
    It has none of the options of nn.Embedding, and is differentiated backwards only.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)

    def reset_parameters(self) -> None:
        """Nothing without memory, where a model is only checked: PyTorch would import its compiler for it, seconds."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        has_kernel = self.weight.is_cuda and self.weight.dtype != torch.float64
        # A compiler sees what it knows; torch.func has no rule for the kernel.
        if not has_kernel or torch.compiler.is_compiling() or under_transforms():
            return super().forward(input)
        return _Lookup.apply(self.weight, input)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocab_size, ctx.dtype = weight.shape[0], weight.dtype
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (tokens,), (gradient,) = ctx.saved_tensors, gradients
        return _sum_by_token(gradient, tokens, ctx.vocab_size)[0].to(ctx.dtype), None


def _sum_rows(gradient: Tensor, tokens: Tensor, vocab_size: int) -> tuple[Tensor]:
    from palimpsa.kernels.gpu.embedding import embedding_gradient

    return (embedding_gradient(gradient.reshape(-1, gradient.shape[-1]), tokens.flatten(), vocab_size),)


def _map_sum(call: Any, size: int, in_dims: tuple[Any, ...], gradient: Tensor, *args: Any) -> Any:
    return (torch.stack([call(each, *args)[0] for each in gradient.unbind(in_dims[0])]),), (0,)


_sum_by_token = stand_in(_sum_rows, _sum_rows, _map_sum, "TokenEmbedding is differentiable once, and backwards")
