"""Every mixer: parallel equals step by step, packed equals separate, causal, sized as told, and what each one is."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from palimpsa.kernels import palimpsa_reference
from palimpsa.mixers import GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaD, PalimpsaM, SimpleGLA
from palimpsa.mixers.base import MixerCache
from palimpsa.mixers.layers import ShortConvolution, mean_window, token_positions
from palimpsa.mixers.parameters import initial_decay, initialise
from palimpsa.mixers.plasticity import set_strength

D_MODEL, HEADS, K, V = 16, 2, 4, 6
MIXERS = {
    "palimpsa_d": (PalimpsaD, {}),
    "palimpsa_d_nometa": (PalimpsaD, {"metaplastic": False}),
    "palimpsa_d_prior3": (PalimpsaD, {"importance_prior": 3.0}),
    "palimpsa_d_scalar": (PalimpsaD, {"plasticity": "scalar"}),
    "palimpsa_d_grouped": (PalimpsaD, {"plasticity": "grouped", "num_precisions": 3}),
    "palimpsa_d_constant": (PalimpsaD, {"plasticity": "constant"}),
    "palimpsa_d_weak": (PalimpsaD, {"strength": 0.25}),
    "palimpsa_d_two_keys": (PalimpsaD, {"key_expansion": 2}),
    "palimpsa_m": (PalimpsaM, {}),
    "palimpsa_m_scalar": (PalimpsaM, {"plasticity": "scalar"}),
    "palimpsa_m_grouped": (PalimpsaM, {"plasticity": "grouped", "num_precisions": 2}),
    "palimpsa_m_constant": (PalimpsaM, {"plasticity": "constant"}),
    "palimpsa_m_one_group": (PalimpsaM, {"num_groups": 1}),
    "palimpsa_m_two_norm_groups": (PalimpsaM, {"num_norm_groups": 2}),
    "palimpsa_m_biased": (PalimpsaM, {"projection_bias": True}),
    "mamba2": (PalimpsaM, {"metaplastic": False}),
    "mamba2_two_keys": (PalimpsaM, {"metaplastic": False, "key_expansion": 2, "num_groups": 1}),
    "gla": (GLA, {}),
    "simple_gla": (SimpleGLA, {}),
    "deltanet": (DeltaNet, {}),
    "gated_deltanet": (GatedDeltaNet, {}),
    "attention": (Attention, {}),
    "attention_without_convolution": (Attention, {"head_v_dim": K, "conv_width": 0}),
}
each_mixer = pytest.mark.parametrize("name", MIXERS)
# flash-linear-attention's kernels multiply fp32 numbers in TF32, which keeps 10 bits of them.
CLOSE = {"cpu": {"atol": 2e-6, "rtol": 1e-4}, "cuda": {"atol": 5e-3, "rtol": 5e-3}}
# Without a decay there is no `forgetting` to set, and no window to measure.
NO_DECAY = ("deltanet", "attention", "attention_without_convolution")
each_mixer_with_a_decay = pytest.mark.parametrize("name", [name for name in MIXERS if name not in NO_DECAY])
WITH_CONVOLUTION = {GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaD, PalimpsaM, SimpleGLA}
IMPORTANCE = tuple(name for name, (_, more) in MIXERS.items() if "palimpsa" in name and more.get("metaplastic", True))


def make(name: str, **changes):
    mixer_class, arguments = MIXERS[name]
    decay = {} if name in NO_DECAY else {"forgetting": "normal"}
    sizes = {"d_model": D_MODEL, "num_heads": HEADS, "head_k_dim": K, "head_v_dim": V}
    mixer = mixer_class(**{**sizes, **decay, **arguments, **changes})
    initialise(mixer, 0.3, torch.Generator().manual_seed(0))
    return mixer


def inputs(*shape: int, seed: int = 1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def key_width(name: str) -> int:
    return K * MIXERS[name][1].get("key_expansion", 1)


def precisions(arguments: dict) -> int:
    """G of a metaplastic mixer."""
    return 1 if arguments.get("plasticity") == "scalar" else arguments.get("num_precisions", V)


@each_mixer
def test_parallel_forward_equals_decoding_step_by_step(name, device):
    mixer, x = make(name).to(device), inputs(3, 19, D_MODEL).to(device)
    cache = mixer.new_cache(3)
    steps = torch.stack([mixer.step(x[:, t], cache) for t in range(19)], dim=1)
    torch.testing.assert_close(steps, mixer(x), **CLOSE[device])


@each_mixer
@pytest.mark.parametrize("split", [1, 2, 7])
def test_prefill_then_decode_equals_the_whole(name, split, device):
    mixer, x = make(name).to(device), inputs(2, 12, D_MODEL).to(device)
    cache = mixer.new_cache(2)
    pieces = [mixer(x[:, :split], cache), mixer(x[:, split:9], cache)]
    pieces += [mixer.step(x[:, t], cache)[:, None] for t in range(9, 12)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), **CLOSE[device])


@each_mixer
def test_packed_sequences_equal_separate_ones(name, device):
    mixer, x = make(name).to(device), inputs(1, 14, D_MODEL).to(device)
    bounds = [0, 1, 6, 6, 14]
    packed = mixer(x, cu_seqlens=torch.tensor(bounds, device=device))
    pieces = [mixer(x[:, a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    torch.testing.assert_close(packed, torch.cat(pieces, dim=1), **CLOSE[device])


@each_mixer
def test_packing_and_a_cache_exclude_each_other(name):
    mixer = make(name)
    with pytest.raises(ValueError, match="cu_seqlens"):
        mixer(inputs(1, 4, D_MODEL), cache=mixer.new_cache(1), cu_seqlens=torch.tensor([0, 4]))


@each_mixer
@pytest.mark.parametrize(
    ("rows", "bounds", "message"),
    [
        (1, [0, 5], "must end at T = 10, got 5"),
        (1, [2, 10], "must start at 0, got 2"),
        (1, [-1, 10], "must start at 0"),
        (1, [0, 6, 4, 10], "must not decrease"),
        (1, [0, 12], "must end at T = 10"),
        (1, [0], "shape"),
        (1, [0.0, 10.0], "dtype"),
        (2, [0, 10], "B = 1, got B = 2"),
    ],
)
def test_impossible_boundaries_are_refused(name, rows, bounds, message):
    with pytest.raises((TypeError, ValueError), match=f"^cu_seqlens.*{message}"):
        make(name)(inputs(rows, 10, D_MODEL), cu_seqlens=torch.tensor(bounds))


@each_mixer
def test_nothing_and_one_token_are_mixed(name):
    mixer, x = make(name), inputs(2, 1, D_MODEL)
    assert mixer(x[:1, :0], cu_seqlens=torch.tensor([0, 0])).shape == (1, 0, D_MODEL)
    torch.testing.assert_close(mixer(x)[:, 0], mixer.step(x[:, 0], mixer.new_cache(2)), atol=2e-6, rtol=1e-4)


@each_mixer
def test_output_depends_on_no_later_token(name):
    mixer, x = make(name), inputs(2, 10, D_MODEL)
    changed = x.clone()
    changed[:, 6:] += 1.0
    before, after = mixer(x), mixer(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6])


@each_mixer
def test_every_parameter_gets_a_gradient(name):
    mixer = make(name)
    mixer(inputs(2, 10, D_MODEL)).square().sum().backward()
    for parameter_name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


# Training by truncated contexts that carry their state would have been lost.
@each_mixer
@pytest.mark.parametrize("bounds", [(0, 5, 9), (0, 1, 2, 9)], ids=str)
def test_gradients_flow_from_piece_to_piece_through_a_cache(name, bounds, device):
    mixer, x = make(name).to(device), inputs(2, 9, D_MODEL).to(device)
    weights = inputs(2, 9, D_MODEL, seed=2).to(device)

    def gradients(bounds):
        cache, leaf = mixer.new_cache(2), x.clone().requires_grad_()
        # As a state that was learned, or that an earlier piece left: attention's holds no token.
        start = tuple((state + 0.5).requires_grad_() for state in cache.state)
        cache.state = start
        pieces = [mixer(leaf[:, a:b], cache) for a, b in itertools.pairwise(bounds)]
        loss = (torch.cat(pieces, 1) * weights).sum() + sum(state.square().sum() for state in cache.state)
        # Decoding goes on from what the pieces left, and does not spoil their way back.
        mixer.step(x[:, 0], MixerCache(cache.conv, tuple(state.detach().clone() for state in cache.state)))
        return torch.autograd.grad(loss, [leaf, *start, *mixer.parameters()], allow_unused=name.startswith("attention"))

    for found, expected in zip(gradients(bounds), gradients((0, 9)), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None and expected.numel():
            close = (5e-3 if device == "cuda" else 2e-5) * max(1.0, expected.abs().max().item())
            torch.testing.assert_close(found, expected, atol=close, rtol=0)


# An empty rank or shard would have stopped training: an optimiser, or DDP, meets parameters without a gradient.
@each_mixer
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0), (1, 0)], ids=str)
def test_of_nothing_every_gradient_is_zeros(name, shape, device):
    mixer = make(name).to(device)
    options = [{}, {"cache": mixer.new_cache(shape[0])}]
    if shape == (1, 0):
        options.append({"cu_seqlens": torch.tensor([0, 0, 0], device=device)})
    for option in options:
        mixer.zero_grad()
        x = torch.zeros(*shape, D_MODEL, device=device, requires_grad=True)
        y = mixer(x, **option)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad is not None
        for parameter_name, parameter in mixer.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert not parameter.grad.any(), parameter_name
    if shape[0] == 0:
        with torch.no_grad():
            step = mixer.step(torch.zeros(0, D_MODEL, device=device), mixer.new_cache(0))
        assert step.shape == (0, D_MODEL)


@each_mixer
def test_state_size_is_what_the_cache_holds(name):
    mixer = make(name)
    assert mixer.state_size == sum(state[0].numel() for state in mixer.new_cache(1).state)
    cache = mixer.new_cache(1)
    before = sum(state.numel() for state in cache.state)
    mixer(inputs(1, 3, D_MODEL), cache)
    assert sum(state.numel() for state in cache.state) == before + 3 * mixer.state_growth
    if name.startswith("attention"):
        assert mixer.state_size == 0
        assert mixer.state_growth > 0
    else:
        columns = V + (precisions(MIXERS[name][1]) if name in IMPORTANCE else 0)
        assert mixer.state_size == HEADS * key_width(name) * columns


def test_the_cache_of_attention_grows_by_a_key_and_a_value_a_token():
    mixer, x = make("attention"), inputs(2, 9, D_MODEL)
    cache = mixer.new_cache(2)
    mixer(x[:, :5], cache)
    mixer.step(x[:, 5], cache)
    assert [state.shape for state in cache.state] == [(2, HEADS, 6, K), (2, HEADS, 6, V)]


@each_mixer_with_a_decay
def test_all_mixers_start_with_the_same_windows(name):
    """At the bias (x = 0) a head's window is 1 / (1 - exp(-A d)), whatever the parametrisation."""
    mixer = make(name, forgetting="small")
    rate, step_size = initial_decay(HEADS, "small")
    expected = 1 / -torch.expm1(-rate * step_size)
    window = mixer.memory(torch.zeros(1, 5, D_MODEL)).window[0]
    torch.testing.assert_close(window, expected, rtol=1e-3, atol=0)


def test_initial_windows_are_those_of_the_protocol():
    for forgetting, low, high in (("small", 614.3, 6250.0), ("normal", 6.143, 62.5)):
        rate, step_size = initial_decay(8, forgetting)
        windows = 1 / (rate * step_size)
        assert windows.min().item() == pytest.approx(low, rel=1e-4)
        assert windows.max().item() == pytest.approx(high, rel=1e-4)
    with pytest.raises(ValueError, match="forgetting: got 'tiny'"):
        initial_decay(8, "tiny")


@each_mixer
def test_memory_trace(name):
    mixer, x = make(name), inputs(3, 10, D_MODEL)
    trace = mixer.memory(x)
    if name in NO_DECAY:
        assert trace.window is None
    else:
        assert trace.window.shape == (3, HEADS)
        assert (trace.window >= 1).all()
    if not isinstance(mixer, PalimpsaD | PalimpsaM):
        assert trace.importance is None
        return
    columns = precisions(MIXERS[name][1]) if name in IMPORTANCE else V
    assert trace.importance.shape == (3, HEADS, key_width(name), columns)
    prior = 3.0 if name == "palimpsa_d_prior3" else 1.0
    if "nometa" in name or "mamba2" in name:
        assert (trace.importance == prior).all()
    else:
        assert (trace.importance >= prior).all()
        assert trace.importance.max() > prior


def test_mean_window_keeps_digits_that_one_minus_exp_loses():
    log_decay = torch.full((1, 3, 1), -1e-6)
    torch.testing.assert_close(mean_window(log_decay), torch.tensor([[1e6]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_what_never_forgets_has_an_infinite_window(zero):
    assert mean_window(torch.full((1, 3, 1), zero)).item() == float("inf")


# What the precisions of a head's V rows are made of, one a row.
PLASTICITY = {
    "vector": {"plasticity": "vector"},
    "grouped": {"plasticity": "grouped", "num_precisions": 3},
    "grouped_alone": {"plasticity": "grouped", "num_precisions": V},
    "scalar": {"plasticity": "scalar"},
    "constant": {"plasticity": "constant"},
}


def beta_of_each_row(mixer, x, input_gate):
    """[B, T, H, V] by the equations of a plasticity."""
    scale = F.softplus(mixer.plasticity.scale)[:, None]
    if not hasattr(mixer.plasticity, "up"):
        rows = scale / 2 * torch.sigmoid(mixer.plasticity.logit).view(HEADS, V)
        return rows.expand(*x.shape[:2], HEADS, V)
    u = torch.sigmoid(x @ mixer.plasticity.down.weight.T @ mixer.plasticity.up.weight.T).unflatten(-1, (HEADS, -1))
    # Row r belongs to group r // (V / G).
    group = torch.arange(V) // (V // u.shape[-1])
    return input_gate[..., None] * scale * u[..., group]


@pytest.mark.parametrize("plasticity", [*PLASTICITY, None])
def test_palimpsa_d_is_its_equations(plasticity):
    changes = PLASTICITY[plasticity] if plasticity else {"metaplastic": False}
    mixer, x = make("palimpsa_d", **changes).double(), inputs(2, 9, D_MODEL).double()

    def heads(y):
        return y.unflatten(-1, (HEADS, -1))

    def normalised(y):
        return y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    q = normalised(heads(conv(mixer.q_conv, x @ mixer.q_proj.weight.T)))
    k = normalised(heads(conv(mixer.k_conv, x @ mixer.k_proj.weight.T)))
    value = heads(conv(mixer.v_conv, x @ mixer.v_proj.weight.T))
    b = torch.sigmoid(x @ mixer.input_gate_proj.weight.T)
    d = F.softplus(x @ mixer.decay_proj.weight.T + mixer.decay.bias)
    if plasticity == "constant":
        with torch.no_grad():
            mixer.plasticity.logit.copy_(inputs(HEADS * V))
    beta = beta_of_each_row(mixer, x, b) if plasticity else None
    g = -mixer.decay.log_rate.exp() * d
    o = palimpsa_reference(q, k, b[..., None] * value, beta, g, torch.ones(HEADS).double(), scale=K**-0.5).o
    y = o + mixer.skip[:, None] * value
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.o_norm.weight
    y = y * F.silu(heads(x @ mixer.gate_proj.weight.T))
    torch.testing.assert_close(mixer(x), y.flatten(-2) @ mixer.o_proj.weight.T, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_m"])
def test_expanded_keys_are_wider_ones(name):
    expanded, wide = (make(name, metaplastic=False, **keys) for keys in ({"key_expansion": 3}, {"head_k_dim": 3 * K}))
    assert expanded.state_size == wide.state_size
    assert expanded.memory_flops(9) == wide.memory_flops(9)
    x = inputs(2, 9, D_MODEL)
    assert torch.equal(expanded(x), wide(x))


def test_with_twice_the_keys_a_control_has_as_many_recurrent_numbers():
    for name in ("palimpsa_d", "palimpsa_m"):
        assert make(name, metaplastic=False, key_expansion=2).state_size == make(name).state_size


def test_biases_of_palimpsa_ms_projections_start_at_zero_and_count():
    mixer, plain, x = make("palimpsa_m_biased"), make("palimpsa_m"), inputs(2, 9, D_MODEL)
    assert not mixer.in_proj.bias.any()
    assert not mixer.out_proj.bias.any()
    assert torch.equal(mixer(x), plain(x))
    with torch.no_grad():
        mixer.out_proj.bias.add_(1)
        torch.testing.assert_close(mixer(x), plain(x) + 1)
        mixer.in_proj.bias.add_(1)
        assert not torch.allclose(mixer(x), plain(x) + 1, atol=0.1)


@pytest.mark.parametrize(
    ("plasticity", "num_groups"), [*((plasticity, 2) for plasticity in PLASTICITY), ("vector", 1), (None, 2)]
)
def test_palimpsa_m_is_its_equations(plasticity, num_groups):
    changes = PLASTICITY[plasticity] if plasticity else {"metaplastic": False}
    mixer = make("palimpsa_m", **changes, num_groups=num_groups).double()
    x = inputs(2, 9, D_MODEL).double()
    width, keys = HEADS * V, num_groups * K
    z, mixed, logits = (x @ mixer.in_proj.weight.T).split([width, width + 2 * keys, HEADS], dim=-1)
    value, k, q = conv(mixer.conv, mixed).split([width, keys, keys], dim=-1)
    value = value.unflatten(-1, (HEADS, V))
    # Head h reads group h * num_groups // HEADS.
    group = torch.arange(HEADS) * num_groups // HEADS
    q, k = (y.unflatten(-1, (num_groups, K))[:, :, group] for y in (q, k))
    d = F.softplus(logits + mixer.decay.bias)
    beta = beta_of_each_row(mixer, x, d) if plasticity else None
    g = -mixer.decay.log_rate.exp() * d
    o = palimpsa_reference(q, k, d[..., None] * value, beta, g, torch.ones(HEADS).double(), scale=1.0).o
    y = (o + mixer.skip[:, None] * value).flatten(-2) * F.silu(z)
    # Each group of keys is normalised by itself.
    y = y.unflatten(-1, (num_groups, -1))
    y = (y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()).flatten(-2) * mixer.o_norm.weight
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_m"])
@pytest.mark.parametrize("plasticity", ["grouped", "scalar"])
def test_few_precisions_are_those_of_all_rows_with_their_gradients(name, plasticity):
    """As they were computed before the operator knew groups: expanded over the rows of the head."""
    mixer, x = make(name, **PLASTICITY[plasticity]).double(), inputs(2, 9, D_MODEL).double()

    def values_and_gradients():
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        return [y, *torch.autograd.grad((y * inputs(*y.shape, seed=2)).sum(), [leaf, *mixer.parameters()])]

    found = values_and_gradients()
    rows = V // mixer.plasticity.num_precisions
    assert rows > 1
    mixer.plasticity.register_forward_hook(lambda module, args, beta: beta.repeat_interleave(rows, dim=-1))
    for one, other in zip(found, values_and_gradients(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_d_scalar", "palimpsa_d_constant", "palimpsa_m"])
@torch.no_grad()
def test_strength_leads_from_the_model_without_metaplasticity_to_the_one_of_the_weights(name, device):
    mixer, x = make(name).to(device), inputs(2, 19, D_MODEL).to(device)
    twin = make(name, metaplastic=False, plasticity="vector").to(device)
    twin.load_state_dict({key: weight for key, weight in mixer.state_dict().items() if "plasticity" not in key})
    whole, beta = mixer(x), mixer.plasticity(x, torch.ones(2, 19, HEADS, device=device))
    importances = []
    for strength in (0.0, 0.01, 0.25, 1.0):
        set_strength(mixer, strength)
        other = make(name, strength=strength).to(device)
        other.load_state_dict(mixer.state_dict())
        assert torch.equal(mixer(x), other(x))
        torch.testing.assert_close(mixer.plasticity(x, torch.ones(2, 19, HEADS, device=device)), strength * beta)
        importances.append(mixer.memory(x).importance)
        if strength == 0:
            torch.testing.assert_close(mixer(x), twin(x), **CLOSE[device])
            torch.testing.assert_close(importances[0], torch.ones_like(importances[0]))
            # Step by step too.
            cache = mixer.new_cache(2)
            steps = torch.stack([mixer.step(x[:, t], cache) for t in range(19)], dim=1)
            torch.testing.assert_close(steps, twin(x), **CLOSE[device])
    assert torch.equal(mixer(x), whole)
    assert not torch.allclose(whole, twin(x), atol=1e-3)
    assert all((more > less).all() for less, more in itertools.pairwise(importances))


def test_a_strength_that_is_none_and_a_model_without_importances_are_refused():
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^strength: got .*, expected 0 <= strength <= 1"):
            set_strength(make("palimpsa_d"), strength)
    with pytest.raises(ValueError, match=r"^strength: got 0\.5, expected a metaplastic model"):
        set_strength(make("mamba2"), 0.5)


def test_operations_are_counted_by_what_there_is_of_importances():
    for name, G in (("palimpsa_d", V), ("palimpsa_d_grouped", 3), ("palimpsa_m_scalar", 1), ("mamba2", 0)):
        assert make(name).memory_flops(9) == 5 * HEADS * K * (V + G)


def test_gla_is_the_librarys_recurrence():
    """Against the recurrence written out, in float64, so that the library's reference is checked as well."""
    mixer, x = make("gla"), inputs(2, 9, D_MODEL)

    def heads(y):
        return y.unflatten(-1, (HEADS, -1)).double()

    q = heads(conv(mixer.q_conv, x @ mixer.q_proj.weight.T)) * K**-0.5
    k = heads(conv(mixer.k_conv, x @ mixer.k_proj.weight.T))
    v = heads(conv(mixer.v_conv, x @ mixer.v_proj.weight.T))
    logits = x @ mixer.decay_down.weight.T @ mixer.decay_up.weight.T + mixer.decay_bias
    alpha = torch.sigmoid(heads(logits)) ** (1 / 16)
    state, o = torch.zeros(2, HEADS, K, V).double(), []
    for t in range(9):
        state = alpha[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        o.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    y = torch.stack(o, dim=1)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.o_norm.weight.double()
    y = y * F.silu(heads(x @ mixer.gate_proj.weight.T))
    torch.testing.assert_close(mixer(x), y.flatten(-2).float() @ mixer.o_proj.weight.T, atol=1e-5, rtol=1e-4)


def conv(layer: ShortConvolution, x):
    """The short convolution by torch's own conv1d."""
    y = F.conv1d(F.pad(x.transpose(1, 2), (layer.width - 1, 0)), layer.weight[:, None], layer.bias, groups=x.shape[-1])
    return F.silu(y.transpose(1, 2))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_short_convolution_is_torchs(width, bias):
    layer, x = ShortConvolution(5, width, bias), inputs(2, 7, 5)
    initialise(layer, 1.0, torch.Generator().manual_seed(0))
    if bias:
        layer.bias.data.copy_(inputs(5))
    torch.testing.assert_close(layer(x), conv(layer, x))


@pytest.mark.parametrize("mixer_class", sorted(WITH_CONVOLUTION, key=str))
def test_taps_start_from_the_distribution_that_is_asked_for(mixer_class):
    def taps(**options):
        mixer = mixer_class(64, 2, 64, 64, conv_width=4, **options)
        initialise(mixer, 0.3, torch.Generator().manual_seed(0))
        convolutions = [module for module in mixer.modules() if isinstance(module, ShortConvolution)]
        return torch.cat([convolution.weight.detach().flatten() for convolution in convolutions])

    assert taps().abs().max() <= 0.5
    assert taps().std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)
    drawn = taps(conv_init_std=0.02)
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
    # Normal: 4.6% of all are further than twice that from 0.
    assert (drawn.abs() > 0.04).float().mean().item() == pytest.approx(0.0455, abs=0.015)
    assert torch.equal(drawn, taps(conv_init_std=0.02))


def test_token_positions_restart_at_every_boundary():
    assert token_positions(torch.tensor([0, 2, 2, 5]), 5).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("mixer_class", "changes", "named"),
    [
        (PalimpsaD, {"num_heads": 0}, "num_heads"),
        (PalimpsaD, {"head_k_dim": -1}, "head_k_dim"),
        (PalimpsaM, {"importance_prior": 0.0}, "importance_prior"),
        (PalimpsaD, {"head_k_dim": -1, "key_expansion": 2}, "head_k_dim"),
        (PalimpsaD, {"key_expansion": 0}, "key_expansion"),
        (PalimpsaM, {"key_expansion": -2}, "key_expansion"),
        (PalimpsaM, {"num_groups": 3}, "num_groups"),
        (PalimpsaM, {"num_norm_groups": 5}, "num_norm_groups"),
        (GLA, {"gate_rank": 0}, "gate_rank"),
        (GLA, {"conv_width": 0}, "conv_width"),
        (SimpleGLA, {"head_v_dim": 0}, "head_v_dim"),
        (SimpleGLA, {"forgetting": "tiny"}, "forgetting"),
        (DeltaNet, {"num_heads": 0}, "num_heads"),
        (GatedDeltaNet, {"forgetting": "tiny"}, "forgetting"),
        (Attention, {"head_k_dim": 5, "head_v_dim": 5}, "head_k_dim"),
        (Attention, {"conv_width": -1}, "conv_width"),
        (Attention, {"num_heads": 3}, "num_heads"),
        (PalimpsaM, {"norm_eps": 0.0}, "norm_eps"),
        (DeltaNet, {"norm_eps": -1.0}, "norm_eps"),
        (PalimpsaD, {"initial_plasticity": (0.0, 1.0)}, "initial_plasticity"),
        (PalimpsaD, {"plasticity": "row"}, "plasticity"),
        (PalimpsaD, {"plasticity": "row", "metaplastic": False}, "plasticity"),
        (PalimpsaD, {"plasticity": "constant", "initial_plasticity": (0.1, 1.0)}, "initial_plasticity"),
        (PalimpsaM, {"plasticity": "row"}, "plasticity"),
        *(
            (PalimpsaD, {"plasticity": "grouped", "num_precisions": G}, "num_precisions")
            for G in (None, 0, -3, 4, 12, 3.0, "3", True)
        ),
        (PalimpsaM, {"plasticity": "grouped"}, "num_precisions"),
        *((PalimpsaM, {"plasticity": kind, "num_precisions": 1}, "num_precisions") for kind in ("vector", "scalar")),
        (PalimpsaD, {"plasticity": "constant", "num_precisions": V}, "num_precisions"),
        (PalimpsaD, {"metaplastic": False, "num_precisions": 2}, "num_precisions"),
        (PalimpsaM, {"metaplastic": False, "plasticity": "scalar"}, "plasticity"),
        *((PalimpsaM, {"strength": value}, "strength") for value in (-0.1, 1.5, float("nan"))),
        (PalimpsaD, {"metaplastic": False, "strength": 0.5}, "strength"),
        (PalimpsaM, {"step_size_limit": (2.0, 1.0)}, "step_size_limit"),
        (Attention, {"rope_base": 1.0}, "rope_base"),
        *((mixer_class, {"conv_init_std": 0.0}, "conv_init_std") for mixer_class in sorted(WITH_CONVOLUTION, key=str)),
        (GLA, {"conv_init_std": float("inf")}, "conv_init_std"),
        (Attention, {"conv_width": 0, "conv_init_std": 0.1}, "conv_init_std"),
    ],
)
def test_impossible_sizes_are_refused_by_name(mixer_class, changes, named):
    sizes = {"d_model": D_MODEL, "num_heads": HEADS, "head_k_dim": K, "head_v_dim": V, **changes}
    with pytest.raises(ValueError, match=f"^{named}: got"):
        mixer_class(**sizes)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="head_dim"):
        PalimpsaD(D_MODEL, HEADS, K, V, head_dim=3)


@each_mixer
def test_bf16_autocast_is_the_same_function_roughly(name, device):
    """fp32 weights under bf16 autocast: bf16 keeps 8 bits, a recurrent state stays fp32."""
    exact = make(name)(inputs(2, 12, D_MODEL)).to(device)
    mixer, x = make(name).to(device), inputs(2, 12, D_MODEL).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        rough = mixer(x)
        cache = mixer.new_cache(2)
        steps = torch.stack([mixer.step(x[:, t], cache) for t in range(12)], dim=1)
    assert rough.dtype == torch.bfloat16
    # Keys and values are kept as they were computed; what is added to for long is not.
    kept = torch.bfloat16 if name.startswith("attention") else torch.float32
    assert all(state.dtype == kept for state in cache.state)
    for result in (rough, steps):
        assert (result.float() - exact).norm() / exact.norm() < 0.03
    rough.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@each_mixer
def test_a_copy_in_fp64_or_bf16_still_runs_and_decodes(name):
    """For inference: what trains has fp32 master weights."""
    mixer, x = make(name), inputs(2, 12, D_MODEL)
    exact = mixer(x)
    for dtype, most in ((torch.float64, 1e-5), (torch.bfloat16, 0.03)):
        copied = copy.deepcopy(mixer).to(dtype)
        cache = copied.new_cache(2)
        steps = torch.stack([copied.step(x[:, t].to(dtype), cache) for t in range(12)], dim=1)
        for result in (copied(x.to(dtype)), steps):
            assert result.dtype == dtype
            assert (result - exact).norm() / exact.norm() < most
