"""A compiled mixer, whose projections are put together otherwise, computes what it does uncompiled."""

from functools import partial

import pytest
import torch
from torch.nn.utils import prune

from palimpsa.mixers import GLA, PalimpsaD, PalimpsaM
from palimpsa.mixers.layers import ShortConvolution, project_and_convolve


# What compiled code does otherwise is seen without a C++ compiler too.
@pytest.mark.parametrize("num_tokens", [40, 3], ids=["together", "apart"])
def test_compiled_projections_and_convolutions_are_those_of_their_layers(num_tokens):
    torch.manual_seed(0)
    linears = [torch.nn.Linear(6, width, bias=False) for width in (4, 4, 8, 2)]
    convolutions = [ShortConvolution(width, 3) for width in (4, 4, 8)]
    x = torch.randn(1, num_tokens, 6)

    def run(x):
        return project_and_convolve(x, linears[:3], convolutions, linears[3:], None, None)

    compiled = torch.compile(run, backend="eager", fullgraph=True)(x)
    expected = [c(linear(x)) for c, linear in zip(convolutions, linears[:3], strict=True)] + [linears[3](x)]
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(run(x), expected, strict=True):
        assert torch.equal(one, other)


def values_and_gradients(run, module, x):
    """The output, and the gradients of x and of every parameter by name, of a projection of the output."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    "make",
    [
        PalimpsaD,
        *(partial(PalimpsaD, plasticity=kind) for kind in ("scalar", "constant")),
        PalimpsaM,
        GLA,
        partial(PalimpsaM, metaplastic=False, num_groups=1),
    ],
)
def test_a_compiled_mixer_computes_what_it_does_uncompiled(make):
    """Its projections are put together otherwise: widths differ, so that none can stand for another."""
    torch.manual_seed(0)
    mixer, x = make(d_model=16, num_heads=2, head_k_dim=3, head_v_dim=5), torch.randn(2, 60, 16)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = values_and_gradients(torch.compile(mixer, backend="eager"), mixer, x)
    for name, value in values_and_gradients(mixer, mixer, x).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def double(module, args, output):
    return 2 * output


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (PalimpsaD, "q_proj"),
        (PalimpsaD, "gate_proj"),
        (PalimpsaD, "plasticity.down"),
        (PalimpsaM, "in_proj"),
        (PalimpsaM, "plasticity.down"),
    ],
)
@pytest.mark.parametrize("change", ["hook", "forward", "prune"])
def test_what_is_hung_on_a_projection_is_kept_when_compiled(make, name, change):
    torch.manual_seed(0)
    mixer, x = make(d_model=16, num_heads=2, head_k_dim=3, head_v_dim=5), torch.randn(2, 60, 16)
    linear = mixer.get_submodule(name)
    if change == "hook":
        linear.register_forward_hook(double)
    elif change == "forward":
        plain = linear.forward
        linear.forward = lambda x: 2 * plain(x)
    else:
        prune.l1_unstructured(linear, "weight", 0.5)
    # What dynamo has compiled for another mixer it takes for this one, whose forward it does not look at.
    torch._dynamo.reset()
    compiled = torch.compile(mixer, backend="eager")
    for _ in range(2):
        found = values_and_gradients(compiled, mixer, x)
        for key, value in values_and_gradients(mixer, mixer, x).items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_an_adapter_around_a_projection_is_kept_when_compiled():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    mixer = PalimpsaD(d_model=8, num_heads=2, head_k_dim=4, head_v_dim=4)
    x = torch.randn(2, 40, 8)
    mixer.q_proj = Doubled(8, 8, bias=False)
    expected = mixer(x)
    torch.testing.assert_close(torch.compile(mixer, backend="eager")(x), expected)
