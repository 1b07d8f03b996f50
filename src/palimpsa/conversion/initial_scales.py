"""How small the precisions of a converted model start: so that it computes what it did, and still learns."""

# H heads, C channels

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from palimpsa.config.errors import ConfigError
from palimpsa.kernels.validation import OperandError
from palimpsa.mixers import PalimpsaD, PalimpsaM
from palimpsa.mixers.layers import ShortConvolution, softplus_inverse
from palimpsa.mixers.plasticity import Plasticity, set_strength
from palimpsa.model.finite import check_finite
from palimpsa.model.language_model import Block, LanguageModel

# See `choose_strength`.
LARGEST_STRENGTH, SMALLEST_STRENGTH = 1e-3, 1e-8
ALLOWED_DIFFERENCE = 3e-5
# What logits are compared on where there may be no text: tokens drawn from the vocabulary.
NUM_CHECKED_TOKENS = 512
# Windows count up to here, which is the length that logits are held to.
LONGEST_WINDOW = 4_096  # tokens
SMALLEST_SUM = 1e-3


class LogitsCheck:
    """How far a model's logits are from those that it has without precisions, on random tokens.

    Args:
        model: metaplastic, of strength 1.

    Raises:
        ConfigError: its logits without precisions are no finite numbers, with which there is nothing to compare.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel) -> None:
        self.num_tokens = NUM_CHECKED_TOKENS
        self._model = model
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(len(model.embedding.weight), (1, self.num_tokens), generator=generator)
        set_strength(model, 0.0)
        try:
            self._expected = model(self._tokens)
        except OperandError as error:
            raise ConfigError(f"got logits that are no finite numbers ({error})") from error
        check_finite({"logits": self._expected}, f"{self.num_tokens} random tokens")
        set_strength(model, 1.0)

    @torch.no_grad()
    def difference(self) -> float:
        """|logits - logits_0|_max / |logits_0|_max, as the model is now."""
        largest = self._expected.abs().max().clamp(min=torch.finfo(self._expected.dtype).tiny)
        return ((self._model(self._tokens) - self._expected).abs().max() / largest).item()


@torch.no_grad()
def set_initial_scales(model: LanguageModel, strength: float) -> None:
    """Sets every s of a model so that softplus(s) is `strength` times `initial_scales`.

    Raises:
        ConfigError: for a strength so small that this is 0 in the dtype of s.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        assert isinstance(block.mixer, PalimpsaD | PalimpsaM)
        assert isinstance(block.mixer.plasticity, Plasticity)
        scale = block.mixer.plasticity.scale.copy_(softplus_inverse(strength * initial_scales(block)))
        if not scale.isfinite().all():
            raise ConfigError(f"--strength: got {strength}, expected more: softplus(s) would be 0 in {scale.dtype}")


def choose_strength(model: LanguageModel, check: LogitsCheck) -> float:
    """The largest power of ten, at most 1e-3, that leaves logits on random tokens within 3e-5 of the source's.

    Those of 4,096 tokens of text are to stay within 1e-3, and have been up to 30 times as far: tests measure them. The
    difference is proportional to the strength, and is measured at 1e-3. How large it is, is a matter of the model: deep
    ones whose matrices are large turn a millionth into a hundredth, their own rounding too. No smaller than it must be:
    softplus'(s) is a factor of the gradient of s, and softplus(s) of the matrices', so that they shrink with it, and
    meet Adam's eps. The scales are those of 1e-3 afterwards.
    """
    set_initial_scales(model, LARGEST_STRENGTH)
    difference = check.difference()
    if not difference > ALLOWED_DIFFERENCE:
        return LARGEST_STRENGTH
    power = math.floor(math.log10(LARGEST_STRENGTH * ALLOWED_DIFFERENCE / difference))
    return max(SMALLEST_STRENGTH, 10.0**power)


@torch.no_grad()
def initial_scales(block: Block) -> Tensor:
    r"""[H]: the softplus(s) of strength 1, with which a window's precisions add up to about the prior importance.

    What a memory without metaplasticity computes changes by I_t / I_prior - 1: the sum of k^2 beta over the window, by
    I_prior. With a typical token's numbers, a key's square k^2, the input gate a and u = 1/2, that sum is
    softplus(s) k^2 a N / 2 over a window of N = 1 / (1 - exp(-A d)) tokens, at most 4,096: softplus(s) is what makes it
    I_prior. So `strength` is a share of the prior, in every head of every model, whatever its windows and keys.

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
