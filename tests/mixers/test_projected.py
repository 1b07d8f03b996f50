"""Projections and convolutions that compiled code puts together: the same results, of fewer products."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.utils import prune

from palimpsa.mixers import GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaD, PalimpsaM, SimpleGLA
from palimpsa.mixers.layers import ShortConvolution
from palimpsa.mixers.projected import RecurrentMixer, project_and_convolve

# Widths differ, so that none can stand for another; values are wide enough for a product of their own.
SIZES = {"d_model": 16, "num_heads": 2, "head_k_dim": 4, "head_v_dim": 33}
# More tokens than channels, so that compiled code puts projections together, in few steps of a recurrence.
NUM_SEQUENCES, NUM_TOKENS = 60, 5
MIXERS = {
    "palimpsa_d": PalimpsaD,
    "palimpsa_d_scalar": partial(PalimpsaD, plasticity="scalar"),
    "palimpsa_d_grouped": partial(PalimpsaD, plasticity="grouped", num_precisions=3),
    "palimpsa_d_constant": partial(PalimpsaD, plasticity="constant"),
    "palimpsa_d_nometa": partial(PalimpsaD, metaplastic=False),
    "palimpsa_m": PalimpsaM,
    "palimpsa_m_scalar": partial(PalimpsaM, plasticity="scalar"),
    "palimpsa_m_biased": partial(PalimpsaM, projection_bias=True),
    "mamba2_one_group": partial(PalimpsaM, metaplastic=False, num_groups=1),
    "gla": GLA,
    "simple_gla": SimpleGLA,
    "deltanet": DeltaNet,
    "gated_deltanet": GatedDeltaNet,
    "attention": Attention,
    "attention_without_convolution": partial(Attention, conv_width=0),
}


def make(name: str):
    """A mixer with random weights, and an input."""
    torch.manual_seed(0)
    # What dynamo has compiled for another mixer it takes for this one, whose forward it does not look at.
    torch._dynamo.reset()
    mixer = MIXERS[name](**SIZES)
    if isinstance(mixer, RecurrentMixer):
        # As the library's kernels are on a GPU: not compiled.
        mixer.recurrence = torch.compiler.disable(mixer.recurrence)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer, torch.randn(NUM_SEQUENCES, NUM_TOKENS, SIZES["d_model"])


def values_and_gradients(run, mixer, x):
    """The output, and the gradients of x and of every parameter by name, of a projection of the output."""
    x = x.clone().requires_grad_()
    mixer.zero_grad()
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in mixer.named_parameters()}


def assert_the_same(compiled, mixer, x):
    found, expected = (values_and_gradients(run, mixer, x) for run in (compiled, mixer))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * value.abs().max(), msg=name)


# Products of what is convolved, of narrow projections, of wide ones (gate and output; of M also value and keys), and
# of the second half of a plasticity or of GLA's decay.
PRODUCTS = {
    "palimpsa_d": 1 + 1 + 2 + 1,
    "palimpsa_d_scalar": 1 + 1 + 2 + 1,
    "palimpsa_d_grouped": 1 + 1 + 2 + 1,
    "palimpsa_d_constant": 1 + 1 + 2,
    "palimpsa_d_nometa": 1 + 1 + 2,
    "palimpsa_m": 1 + 1 + 2 + 1,
    "palimpsa_m_scalar": 1 + 1 + 2 + 1,
    # What has a bias is projected as it stands.
    "palimpsa_m_biased": 1 + 1 + 1 + 1,
    "mamba2_one_group": 1 + 1 + 2,
    "gla": 1 + 1 + 2 + 1,
    "simple_gla": 1 + 1 + 2,
    "deltanet": 1 + 1 + 1,
    "gated_deltanet": 1 + 1 + 2,
    "attention": 1 + 1,
    # Values apart from queries and keys, which are narrow here.
    "attention_without_convolution": 1 + 1 + 1,
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_compiled_mixer_computes_the_same_by_few_products_and_one_convolution(name):
    mixer, x = make(name)
    called = []

    def backend(graph, example_inputs):
        called.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return lookup_backend("aot_eager")(graph, example_inputs)

    assert_the_same(torch.compile(mixer, backend=backend), mixer, x)
    # A convolution adds its taps but the first one by one.
    num_taps = 0 if name == "attention_without_convolution" else 4
    assert called.count(torch.addcmul) == max(0, num_taps - 1)
    assert sum(target in (F.linear, torch._C._nn.linear) for target in called) == PRODUCTS[name]


def projections_and_convolutions():
    torch.manual_seed(0)
    linears = [torch.nn.Linear(6, width, bias=False) for width in (4, 4, 8, 2)]
    return linears, [ShortConvolution(width, 3) for width in (4, 4, 8)]


@pytest.mark.parametrize("num_tokens", [40, 3], ids=["together", "apart"])
@pytest.mark.parametrize("bounds", [None, [0, 1, 1, 3]], ids=["whole", "packed"])
def test_projections_and_convolutions_are_those_of_their_layers(num_tokens, bounds):
    linears, convolutions = projections_and_convolutions()
    x = torch.randn(1, num_tokens, 6)
    cu_seqlens = None if bounds is None else torch.tensor([*bounds[:-1], num_tokens])

    def run(x):
        return project_and_convolve(x, linears[:3], convolutions, linears[3:], None, cu_seqlens)

    expected = [c(y(x), None, cu_seqlens) for c, y in zip(convolutions, linears[:3], strict=True)] + [linears[3](x)]
    for one, other in zip(torch.compile(run, backend="eager", fullgraph=True)(x), expected, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(run(x), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["palimpsa_d", "gated_deltanet"])
@torch.no_grad()
def test_compiled_code_continues_a_cache(name):
    mixer, x = make(name)
    compiled, expected = torch.compile(mixer, backend="eager"), mixer(x)
    cache = mixer.new_cache(NUM_SEQUENCES)
    found = torch.cat([compiled(x[:, :2], cache), compiled(x[:, 2:], cache)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def double(module, args, output):
    return 2 * output


@pytest.mark.parametrize(
    ("name", "where", "change"),
    [
        *(("palimpsa_d", "q_proj", change) for change in ("hook", "forward", "prune")),
        *(("palimpsa_m", "in_proj", change) for change in ("hook", "forward", "prune")),
        ("palimpsa_d", "gate_proj", "hook"),
        ("palimpsa_d", "plasticity.down", "forward"),
        ("palimpsa_d", "k_conv", "forward"),
        ("palimpsa_m", "plasticity.down", "prune"),
        ("gated_deltanet", "beta_proj", "prune"),
        ("attention_without_convolution", "v_proj", "hook"),
    ],
)
def test_what_is_hung_on_a_layer_is_kept_when_compiled(name, where, change):
    mixer, x = make(name)
    layer = mixer.get_submodule(where)
    if change == "hook":
        layer.register_forward_hook(double)
    elif change == "forward":
        plain = layer.forward
        layer.forward = lambda *args: 2 * plain(*args)
    else:
        prune.l1_unstructured(layer, "weight", 0.5)
    compiled = torch.compile(mixer, backend="eager")
    for _ in range(2):
        assert_the_same(compiled, mixer, x)


def test_an_adapter_around_a_projection_is_kept_when_compiled():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    mixer, x = make("palimpsa_d")
    mixer.q_proj = Doubled(16, 8, bias=False)
    expected = mixer(x)
    torch.testing.assert_close(torch.compile(mixer, backend="eager")(x), expected, rtol=1e-4, atol=1e-5)
