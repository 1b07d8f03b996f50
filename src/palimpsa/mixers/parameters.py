"""What all models' parameters have in common: how they start, and their dtypes.

Dtypes: parameters are stored and updated in fp32 (master weights), but for runs that say optimizer.dtype=bfloat16 to
see what comes of it; matrices are multiplied in the dtype that autocast
chooses; decays, gates, norms and the recurrent state are computed in fp32, whatever that dtype is (`at_least_fp32`). A
model cast to fp64 computes in fp64, but for flash-linear-attention's references, which are fp32 throughout.
"""

# D model width, H heads, W convolution width

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from palimpsa.mixers.layers import Decay, ShortConvolution
from palimpsa.mixers.plasticity import Plasticity

MASTER_DTYPE = torch.float32

# Initial decay of head h is exp(-A_h d_h): A on a linear ramp over the heads, d log-spaced ("small" forgetting gives
# windows of 614..6250 tokens over 8 heads, "normal" 6..63, "very_small" 6,144..62,500).
DECAY_RATE_RANGE = {"very_small": (0.001, 0.016), "small": (0.01, 0.16), "normal": (1.0, 16.0)}
STEP_SIZE_RANGE = (0.1, 0.001)
RANDOM = "random"


def initial_decay(num_heads: int, forgetting: str) -> tuple[Tensor, Tensor]:
    """Initial A [H] and d [H], on the CPU: the same decay, exp(-A d), for every model of a comparison.

    Args:
        num_heads: H >= 1.
        forgetting: "very_small", "small" or "normal".

    Raises:
        ValueError: for another `forgetting`.
    """
    if forgetting not in DECAY_RATE_RANGE:
        raise ValueError(f"forgetting: got {forgetting!r}, expected one of {', '.join(DECAY_RATE_RANGE)} here")
    first, last = STEP_SIZE_RANGE
    # Wherever a model is built: arithmetic on the device "meta" imports PyTorch's compiler, which takes seconds.
    rate = torch.linspace(*DECAY_RATE_RANGE[forgetting], num_heads, device="cpu")
    step_size = torch.logspace(math.log10(first), math.log10(last), num_heads, device="cpu")
    return rate, step_size


def make_decay(num_heads: int, forgetting: str, step_size_limit: tuple[float, float] | None = None) -> Decay:
    """The decay of a mixer whose `forgetting` may also be "random": drawn for each head, as `Decay` says.

    Raises:
        ValueError: for another `forgetting`.
    """
    if forgetting == RANDOM:
        return Decay(*initial_decay(num_heads, "normal"), step_size_limit, is_random=True)
    if forgetting not in DECAY_RATE_RANGE:
        known = ", ".join([*DECAY_RATE_RANGE, RANDOM])
        raise ValueError(f"forgetting: got {forgetting!r}, expected one of {known}")
    return Decay(*initial_decay(num_heads, forgetting), step_size_limit)


def initial_decay_bias(num_heads: int, forgetting: str, temperature: float) -> Tensor:
    """b [H] with logsigmoid(b) / temperature = -A d: `initial_decay` in GLA's parametrisation."""
    rate, step_size = initial_decay(num_heads, forgetting)
    # logsigmoid(b) = -c has the solution b = -log(expm1(c)).
    return (-torch.log(torch.expm1(temperature * rate * step_size))).to(torch.get_default_device())


@torch.no_grad()
def store_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps a model's parameters in a dtype; its buffers stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def initialise(model: nn.Module, std: float, generator: torch.Generator) -> None:
    """Draws a model's initial weights in place, by the generator alone.

    Matrices and embeddings come from N(0, std^2), convolution taps from U(-W^-1/2, W^-1/2), or N(0, init_std^2) where
    they have an `init_std`, s of a plasticity that has an `initial_range` so that softplus(s) is log-uniform in it, its
    W_up as it says, and random decays as `Decay` says. Everything else keeps the value that its module gave it: norms,
    biases, skips, and the other decays, which start at `initial_decay`.
    """
    bounds = {id(one.up): one.up_bound for one in model.modules() if isinstance(one, Plasticity)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            bound = bounds.get(id(module))
            if bound is None:
                module.weight.normal_(0.0, std, generator=generator)
            else:
                module.weight.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, ShortConvolution | Plasticity | Decay):
            module.reset_parameters(generator)
