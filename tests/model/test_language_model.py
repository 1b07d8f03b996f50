"""The language model: one stack for every mixer, counted, decoded, initialised from a generator alone."""

import functools

import pytest
import torch
from omegaconf import OmegaConf

from palimpsa.config.compose import CONFIG_DIR, compose_config
from palimpsa.mixers import PalimpsaD
from palimpsa.model.build import build_model
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.identity import flatten
from palimpsa.training.optimizer import weight_decay_groups

ABLATION = sorted(f"ablation/{path.stem}" for path in (CONFIG_DIR / "model/ablation").glob("*.yaml"))
MODELS = [*sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")), *ABLATION]
each_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def config(name: str, *overrides: str):
    return compose_config([f"model={name}", *overrides]).model


def build(name: str, *overrides: str, seed: int = 1) -> LanguageModel:
    return build_model(config(name, *overrides), seed)


def small(**changes) -> LanguageModel:
    arguments = {"norm": "rmsnorm", "generator": torch.Generator().manual_seed(0), **changes}
    return LanguageModel(11, 8, 2, lambda d_model: PalimpsaD(d_model, 2, 4, 4), **arguments)


@each_model
def test_parallel_logits_equal_decoding(name):
    model = build(name)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    caches = model.new_caches(2)
    steps = torch.stack([model.step(tokens[:, t], caches) for t in range(12)], dim=1)
    # Ungated, DeltaNet's norm makes up to 1,000 times as much of the rounding of a read that is close to zero.
    torch.testing.assert_close(steps, model(tokens), atol=2e-3 if name == "deltanet" else 1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("control", "model"), [("palimpsa_d_nometa_wide", "palimpsa_d"), ("mamba2_wide", "palimpsa_m")]
)
def test_a_wide_control_has_twice_the_keys_and_the_state_of_palimpsa_at_every_scale(control, model):
    for scale in sorted(path.stem for path in (CONFIG_DIR / "scale").glob("*.yaml")):
        palimpsa, wide = build(model, f"scale={scale}"), build(control, f"scale={scale}")
        assert wide.state_size == palimpsa.state_size
        assert next(wide.mixers()).head_k_dim == 2 * next(palimpsa.mixers()).head_k_dim


@pytest.mark.parametrize(
    ("model", "twin"), [("palimpsa_d_scalar", "palimpsa_d_nometa"), ("palimpsa_m_scalar", "mamba2")]
)
def test_one_precision_a_head_adds_a_number_a_key_to_the_state_of_the_twin_at_every_scale(model, twin):
    for scale in sorted(path.stem for path in (CONFIG_DIR / "scale").glob("*.yaml")):
        scalar, plain = build(model, f"scale={scale}"), build(twin, f"scale={scale}")
        mixer = next(scalar.mixers())
        assert scalar.state_size == plain.state_size + mixer.num_heads * mixer.head_k_dim
        assert mixer.head_k_dim == next(plain.mixers()).head_k_dim


@each_model
def test_logits_at_positions_are_those_of_the_whole(name):
    model = build(name)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[3, 11], [0, 5]])
    expected = torch.stack([model(tokens)[row, positions[row]] for row in range(2)])
    torch.testing.assert_close(model(tokens, positions), expected)


# Of the published MQAR model (scale h200): 2 layers of width 128, 8 heads, K 16, V 32, vocabulary 8,192.
D, H, K, V, R, LAYERS, VOCABULARY = 128, 8, 16, 32, 8, 2, 8192
SHARED = VOCABULARY * D + 2 * D + LAYERS * 2 * D  # embedding, final LayerNorm, a LayerNorm a layer
PLASTICITY = D * R + R * H * V + H  # W_down, W_up, s
SCALAR = D * R + R * H + H  # W_up has one output a head
MEAN = H * K * V
BLOCK_D = 2 * D * H * K + 3 * D * H * V + 2 * D * H + 4 * (2 * H * K + H * V) + 3 * H + V
BLOCK_M = D * (2 * H * V + 2 * H * K + H) + 5 * (H * V + 2 * H * K) + 3 * H + H * V + D * H * V
QKV = 2 * D * H * K + D * H * V + 4 * (2 * H * K + H * V)
BLOCK_GLA = QKV + 2 * D * H * V + 16 * (D + H * K) + H * K + V
BLOCK_SIMPLE_GLA = QKV + 2 * D * H * V + D * H + H + V
BLOCK_DELTA = QKV + D * H * V + D * H + V
BLOCK_GATED_DELTA = QKV + 2 * D * H * V + 2 * D * H + 2 * H + V
BLOCK_WIDE = BLOCK_D + (2 * D + 2 * 4) * H * K  # the second half of the keys and queries
BLOCK_M_WIDE = BLOCK_M + 2 * (D + 5) * H * K
BLOCK_ATTENTION = QKV + D * H * V


@pytest.mark.parametrize(
    ("name", "block", "state_size"),
    [
        ("palimpsa_d", BLOCK_D + PLASTICITY, 2 * MEAN),
        ("palimpsa_d_nometa", BLOCK_D, MEAN),
        ("palimpsa_m", BLOCK_M + PLASTICITY, 2 * MEAN),
        ("mamba2", BLOCK_M, MEAN),
        # As much state as their twins, and K a head.
        ("palimpsa_d_scalar", BLOCK_D + SCALAR, MEAN + H * K),
        ("palimpsa_m_scalar", BLOCK_M + SCALAR, MEAN + H * K),
        ("gla", BLOCK_GLA, MEAN),
        ("simple_gla", BLOCK_SIMPLE_GLA, MEAN),
        ("deltanet", BLOCK_DELTA, MEAN),
        ("gated_deltanet", BLOCK_GATED_DELTA, MEAN),
        # As much state as Palimpsa-D: twice the keys instead of two states.
        ("palimpsa_d_nometa_wide", BLOCK_WIDE, 2 * MEAN),
        ("mamba2_wide", BLOCK_M_WIDE, 2 * MEAN),
        # Its memory has no fixed size.
        ("transformer", BLOCK_ATTENTION, 0),
    ],
)
def test_parameters_and_state_of_the_published_mqar_model(name, block, state_size):
    model = build(name, "scale=h200")
    assert model.num_parameters == SHARED + LAYERS * block
    assert model.state_size == state_size


@pytest.mark.parametrize("name", ABLATION)
def test_an_ablation_changes_one_choice_of_its_model(name):
    own = config(name)
    base = config("palimpsa_d_nometa" if "nometa" in name else "palimpsa_d")
    assert own.name == name.removeprefix("ablation/")
    before, after = (flatten(OmegaConf.to_container(model, resolve=True)) for model in (base, own))
    changed = {key for key in before | after if before.get(key) != after.get(key)} - {"name", "label"}
    assert len(changed) == 1
    assert changed < {"mixer.plasticity", "mixer.importance_prior", "mixer.forgetting"}


def test_a_constant_beta_starts_as_the_input_dependent_one_does_on_average():
    x = torch.randn(64, 50, 128, generator=torch.Generator().manual_seed(0))
    mixers = [build(name, "scale=h200").blocks[0].mixer for name in ("palimpsa_d", "ablation/palimpsa_d_constant_beta")]
    means = [mixer.plasticity(x, torch.sigmoid(mixer.input_gate_proj(x))).mean().item() for mixer in mixers]
    assert means[1] == pytest.approx(means[0], rel=0.02)


@each_model
def test_initial_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(3)
    first = build(name).state_dict()
    torch.manual_seed(4)
    again, other = build(name).state_dict(), build(name, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_matrices_start_with_variance_one_over_width():
    model = build("palimpsa_d", "scale=h200")
    for weight in (model.embedding.weight, model.blocks[0].mixer.o_proj.weight):
        assert weight.std().item() == pytest.approx(128**-0.5, rel=0.02)


def test_taps_start_uniform_in_the_root_of_their_width():
    mixer = build("palimpsa_d", "scale=h200").blocks[0].mixer
    taps = mixer.q_conv.weight
    assert 0.95 * 4**-0.5 < taps.abs().max() <= 4**-0.5
    assert taps.std().item() == pytest.approx(4**-0.5 / 3**0.5, rel=0.1)


@each_model
def test_only_matrices_decay(name):
    model = build(name)
    decayed, free = weight_decay_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert sum(p.numel() for g in (decayed, free) for p in g["params"]) == model.num_parameters
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    exempt = ("bias", "log_rate", "skip", "plasticity.scale", "plasticity.logit", "norm.weight")
    assert all(names[id(p)].endswith(exempt) for p in free["params"]), [names[id(p)] for p in free["params"]]


def test_weights_that_are_not_fp32_are_not_trained():
    model = small()
    model.blocks[1].mixer.skip.data = model.blocks[1].mixer.skip.data.bfloat16()
    with pytest.raises(ValueError, match=r"^blocks\.1\.mixer\.skip: got .*bfloat16, expected torch\.float32 master"):
        weight_decay_groups(model, 0.1)
    model.blocks[1].mixer.skip.requires_grad_(False)
    assert len(weight_decay_groups(model, 0.1)) == 2


def test_the_prior_is_not_trained_but_stored():
    model = small()
    assert "blocks.0.mixer.importance_prior" in model.state_dict()
    assert all("prior" not in name for name, _ in model.named_parameters())


def test_channel_mixer_adds_a_swiglu_to_every_block():
    plain, mixed = small(), small(channel_mixer="swiglu", channel_width=20)
    assert mixed.num_parameters - plain.num_parameters == 2 * (3 * 8 * 20 + 8)
    assert mixed(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 11)


@torch.no_grad()
def test_logits_by_a_matrix_of_their_own_leave_all_other_weights_as_they_start():
    tied, untied, tokens = small(), small(tie_word_embeddings=False), torch.randint(11, (2, 5))
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    assert all(torch.equal(weight, untied.state_dict()[name]) for name, weight in tied.state_dict().items())
    torch.testing.assert_close(untied(tokens), untied.hidden(tokens) @ untied.head.weight.T)
    assert untied.num_parameters == tied.num_parameters + 11 * 8
    # The rows of the embedding are looked up, not multiplied.
    assert untied.flops_per_token(9) == tied.flops_per_token(9)


def test_memory_traces_come_layer_by_layer():
    model = small()
    traces = model.memory(torch.zeros(3, 5, dtype=torch.int64))
    assert len(traces) == 2
    hidden = model.blocks[0](model.embedding(torch.zeros(3, 5, dtype=torch.int64)))
    second = model.blocks[1].mixer.memory(model.blocks[1].mixer_norm(hidden))
    torch.testing.assert_close(traces[1].importance, second.importance)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm": "batchnorm"}, "norm"),
        ({"channel_mixer": "mlp"}, "channel_mixer"),
        ({"channel_mixer": "swiglu"}, "channel_width"),
    ],
)
def test_unknown_parts_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=f"^{named}: got"):
        small(**changes)
