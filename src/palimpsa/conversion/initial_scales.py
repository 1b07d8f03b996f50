"""How small the precisions of a converted model start, so that it computes what it did."""

# H heads, C channels

from __future__ import annotations

import torch
from torch import Tensor, nn

from palimpsa.mixers import PalimpsaD, PalimpsaM
from palimpsa.mixers.layers import ShortConvolution
from palimpsa.model.language_model import Block

# See `initial_scales`.
DEFAULT_STRENGTH = 1e-5
# Windows count up to here, which is the length that logits are held to.
LONGEST_WINDOW = 4_096  # tokens
SMALLEST_SUM = 1e-3


@torch.no_grad()
def initial_scales(block: Block) -> Tensor:
    r"""[H]: the softplus(s) of strength 1, with which a window's precisions add up to about the prior importance.

    What a memory without metaplasticity computes changes by I_t / I_prior - 1: the sum of k^2 beta over the window, by
    I_prior. With a typical token's numbers, a key's square k^2, the input gate a and u = 1/2, that sum is
    softplus(s) k^2 a N / 2 over a window of N = 1 / (1 - exp(-A d)) tokens, at most 4,096: softplus(s) is what makes it
    I_prior. So `strength` is a share of the prior, in every head of every model, whatever its windows and keys.

    The default is the largest power of ten that keeps logits on 4,096 tokens to a tenth of 1e-3 of the largest of them,
    for models of 2 to 8 layers that transformers drew: one of them makes 8e-3 of a share of 1e-3. A smaller strength
    costs gradient: softplus'(s) is a factor of s's and softplus(s) of the matrices', so that they shrink with it, and
    meet Adam's eps. s, of which a step changes beta by a share, wants a learning rate of its own.

    Typical is, of the weights alone: d = softplus(b_d), a = d in Palimpsa-M and 1/2 in Palimpsa-D, and of a key the
    channel whose square is largest in expectation over inputs whose normalised channels are independent; in Palimpsa-D,
    whose keys have length 1, that channel's share.
    """
    mixer = block.mixer
    assert isinstance(mixer, PalimpsaD | PalimpsaM)
    step_size, log_decay = mixer.decay(torch.zeros(mixer.num_heads))
    window = (-1 / torch.expm1(log_decay)).clamp(max=LONGEST_WINDOW)
    if isinstance(mixer, PalimpsaM):
        value_width, key_width, _ = mixer.conv_widths
        start = mixer.in_widths[0] + value_width
        keys = slice(start, start + key_width)
        bias = None if mixer.in_proj.bias is None else mixer.in_proj.bias[keys]
        squares = _expected_squares(block.mixer_norm, mixer.in_proj.weight[keys], bias, mixer.conv, value_width)
        squares = squares.view(mixer.num_groups, -1).amax(1)
        squares = squares.repeat_interleave(mixer.num_heads // mixer.num_groups)
        input_gate = step_size
    else:
        squares = _expected_squares(block.mixer_norm, mixer.k_proj.weight, None, mixer.k_conv, 0)
        squares = squares.view(mixer.num_heads, -1)
        squares = squares.amax(1) / squares.sum(1)
        input_gate = torch.full_like(window, 0.5)
    sums = squares * input_gate * window / 2
    # A head that hardly writes may learn to.
    return mixer.importance_prior / sums.clamp(min=SMALLEST_SUM)


def _expected_squares(
    norm: nn.Module, weight: Tensor, bias: Tensor | None, convolution: ShortConvolution, first: int
) -> Tensor:
    """[C]: the mean square of what enters the SiLU of a convolution, for channels `first` and on."""
    assert isinstance(norm, nn.RMSNorm | nn.LayerNorm)
    taps = convolution.weight[first : first + len(weight)]
    mean = torch.zeros(len(weight)) if bias is None else bias
    shift = getattr(norm, "bias", None)
    if shift is not None:
        mean = mean + weight @ shift
    mean = mean * taps.sum(1)
    if convolution.bias is not None:
        mean = mean + convolution.bias[first : first + len(weight)]
    return (weight * norm.weight).square().sum(1) * taps.square().sum(1) + mean.square()
