"""What is computed in fp32 whatever the inputs are: decays, norms, angles, references."""

import pytest
import torch

from palimpsa.kernels.fla import recurrences
from palimpsa.mixers import GLA, Attention, GatedDeltaNet, PalimpsaD, SimpleGLA
from palimpsa.mixers.layers import Decay, GatedRMSNorm, at_least_fp32, l2_normalise
from palimpsa.mixers.parameters import initial_decay, initialise
from palimpsa.mixers.plasticity import ConstantPlasticity, Plasticity


def normal(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fp64_stays_and_the_rest_becomes_fp32():
    assert at_least_fp32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_fp32(torch.zeros(1)).dtype == torch.float32
    assert at_least_fp32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_decays_of_bf16_logits_are_those_of_the_same_numbers_in_fp64():
    """0.9998 a token is 1 in bf16: of a window of thousands of tokens nothing would be left."""
    decay = Decay(*initial_decay(8, "small"))
    logits = normal(2, 5, 8).bfloat16()
    exact = Decay(*initial_decay(8, "small")).double()(logits.double())
    for found, expected in zip(decay(logits), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mixer_class", [GLA, SimpleGLA, GatedDeltaNet])
def test_log_decays_are_fp32_under_autocast(mixer_class):
    def log_decay(mixer, x):
        return mixer._log_decay((mixer.decay_down if mixer_class is GLA else mixer.decay_proj)(x))

    mixer = mixer_class(16, 2, 4, 4)
    initialise(mixer, 0.3, torch.Generator().manual_seed(0))
    x = normal(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_decay(mixer, x)
    assert found.dtype == torch.float32
    # Of the bias alone, fp32 gives seven digits; bf16 would give two.
    zero = torch.zeros(1, 1, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_decay(mixer, zero)
    torch.testing.assert_close(found.double(), log_decay(mixer.double(), zero.double()), rtol=1e-5, atol=0)


def test_windows_under_autocast_are_those_of_fp32():
    mixer = PalimpsaD(16, 8, 4, 4)
    zero = torch.zeros(1, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = mixer.memory(zero).window
    torch.testing.assert_close(rough, mixer.memory(zero).window, rtol=1e-5, atol=0)


def rounded_once(found, exact):
    """Whether a bf16 result is the exact one, rounded: half of a unit in the last of its 8 bits."""
    return ((found.double() - exact).abs() <= exact.abs() * 2.0**-8 * 1.01 + 1e-30).all()


def test_norms_round_once():
    x, gate = normal(4, 7, 32).bfloat16(), normal(4, 7, 32, seed=1).bfloat16()
    exact = x.double() * torch.rsqrt(x.double().square().sum(-1, keepdim=True) + 1e-6)
    assert rounded_once(l2_normalise(x), exact)
    norm = GatedRMSNorm(32, 1e-6, gate_first=False)
    assert rounded_once(norm(x, gate), norm.double()(x.double(), gate.double()))


def test_plasticity_is_fp32():
    for plasticity, G in ((Plasticity(16, 2, 3), 3), (Plasticity(16, 2, 1), 1), (ConstantPlasticity(2, 3), 3)):
        beta = plasticity.bfloat16()(normal(1, 2, 16).bfloat16(), torch.ones(1, 2, 2))
        assert beta.dtype == torch.float32
        assert beta.shape == (1, 2, 2, G)


def test_angles_far_out_are_not_those_of_bf16():
    """bf16 holds whole numbers up to 256: every position above would be another one."""
    x, position = normal(1, 3, 2, 8), torch.tensor([1_001, 3_003, 9_999])
    angle = position.double()[:, None, None] * 10_000.0 ** (-torch.arange(4).double() / 4)
    rotate = Attention(16, 2, 8, 8)._rotate
    for dtype, most in ((torch.float32, 2e-3), (torch.bfloat16, 0.02)):
        turned = torch.polar(torch.ones_like(angle), angle) * torch.complex(*x.to(dtype).double().chunk(2, dim=-1))
        expected = torch.cat([turned.real, turned.imag], dim=-1)
        assert (rotate(x.to(dtype), position).double() - expected).abs().max() < most


@pytest.mark.parametrize("rule", ["gla", "simple_gla", "delta_rule", "gated_delta_rule"])
def test_references_compute_in_fp32_under_autocast(rule):
    q, k, v = normal(3, 1, 9, 2, 4)
    beta, g = torch.rand(1, 9, 2, generator=torch.Generator().manual_seed(1)), -normal(1, 9, 2, seed=2).abs()
    own = {"gla": (g[..., None].expand(1, 9, 2, 4),), "simple_gla": (g,), "delta_rule": (beta,)}
    operands = (q, l2_normalise(k), v, *own.get(rule, (beta, g)))
    expected = getattr(recurrences, rule)(*operands, None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = getattr(recurrences, rule)(*operands, None, None)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
