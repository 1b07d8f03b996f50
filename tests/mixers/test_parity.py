"""Each model against its own library, weights copied: transformers' Mamba-2 and Llama, flash-linear-attention's layers.

Each comparison is shown to fail when one constant is altered.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from palimpsa.mixers import GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaM, SimpleGLA, recurrences
from palimpsa.mixers.gla import GATE_TEMPERATURE
from palimpsa.model import LanguageModel, initialise

ROOT = Path(__file__).resolve().parents[2]
D_MODEL, HEADS, K, V = 16, 2, 4, 8


def normal(*shape: int, seed: int = 1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found, expected) -> float:
    """Largest difference, relative to the largest number where that is above 1."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


# transformers' Mamba-2: hidden 16, inner width 32 in 8 heads of 4, state 6.
MAMBA2_NAMES = {
    "backbone.embeddings.weight": "embedding.weight",
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "embedding.weight",
    "norm.weight": "mixer_norm.weight",
    "mixer.dt_bias": "mixer.decay.bias",
    "mixer.A_log": "mixer.decay.log_rate",
    "mixer.D": "mixer.skip",
    "mixer.conv1d.weight": "mixer.conv.weight",
    "mixer.conv1d.bias": "mixer.conv.bias",
    "mixer.norm.weight": "mixer.o_norm.weight",
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
}


def mamba2_pair(num_groups: int, conv_bias: bool = True, time_step_limit=(0.0, float("inf")), num_norm_groups=None):
    """transformers' Mamba2ForCausalLM with random weights, and ours with the same ones."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=23,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=4,
        state_size=6,
        expand=2,
        n_groups=num_groups,
        conv_kernel=4,
        chunk_size=8,
        use_conv_bias=conv_bias,
        time_step_limit=time_step_limit,
        tie_word_embeddings=True,
        layer_norm_epsilon=1e-6,
    )
    library = Mamba2ForCausalLM(config).eval()

    def make_mixer(d_model: int) -> PalimpsaM:
        options = {"num_groups": num_groups, "conv_bias": conv_bias, "num_norm_groups": num_norm_groups}
        return PalimpsaM(d_model, 8, 6, 4, metaplastic=False, **options)

    ours = LanguageModel(23, D_MODEL, 2, make_mixer, norm="rmsnorm", norm_eps=1e-6, generator=None)
    weights = {}
    for seed, (name, weight) in enumerate(library.state_dict().items()):
        # In place, and away from where norms and skips start, so that every one of them counts.
        offset = 1.0 if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")) else 0.0
        weight.copy_(offset + 0.3 * normal(*weight.shape, seed=seed))
        layer, _, rest = name.removeprefix("backbone.layers.").partition(".")
        own = f"blocks.{layer}.{MAMBA2_NAMES[rest]}" if rest in MAMBA2_NAMES else MAMBA2_NAMES[name]
        weights[own] = weight.squeeze(1) if "conv1d.weight" in name else weight
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.endswith("importance_prior") for name in missing)
    return library, ours


TOKENS = torch.randint(0, 23, (2, 21), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("num_groups", "conv_bias"), [(1, True), (8, True), (2, False)])
@torch.no_grad()
def test_mamba2_has_the_logits_of_transformers(num_groups, conv_bias):
    library, ours = mamba2_pair(num_groups, conv_bias)
    expected = library(TOKENS).logits
    assert expected.std() > 0.1
    assert error(ours(TOKENS), expected) < 1e-4
    caches = ours.new_caches(2)
    steps = torch.stack([ours.step(TOKENS[:, t], caches) for t in range(TOKENS.shape[1])], dim=1)
    assert error(steps, expected) < 1e-4


@torch.no_grad()
def test_mamba2s_parity_fails_where_one_part_is_another():
    library, ours = mamba2_pair(2)
    expected = library(TOKENS).logits
    # Mamba-2 normalises each group of keys' heads by itself.
    assert error(mamba2_pair(2, num_norm_groups=1)[1](TOKENS), expected) > 1e-2
    for name in ("skip", "decay.bias", "decay.log_rate"):
        parameter = ours.blocks[0].mixer.get_parameter(name)
        parameter.add_(0.1)
        assert error(ours(TOKENS), expected) > 1e-3
        parameter.sub_(0.1)
    ours.blocks[0].mixer.scale = K**-0.5
    assert error(ours(TOKENS), expected) > 1e-3


@torch.no_grad()
def test_a_limit_on_mamba2s_time_step_is_not_ours():
    """transformers clamps d_t to time_step_limit in its chunked path; the published (0, inf) clamps nothing."""
    library, ours = mamba2_pair(1, time_step_limit=(0.0, 0.5))
    assert error(ours(TOKENS), library(TOKENS).logits) > 1e-3


def llama_attention():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=D_MODEL, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=8)
    config._attn_implementation = "sdpa"
    library = LlamaAttention(config, layer_idx=0).eval()
    ours = Attention(D_MODEL, HEADS, 8, 8, conv_width=0)
    initialise(ours, 0.5, torch.Generator().manual_seed(0))
    library.load_state_dict(ours.state_dict())

    def run(x):
        position = torch.arange(x.shape[1])[None]
        return library(x, LlamaRotaryEmbedding(config)(x, position), None)[0]

    return ours, run


def test_attention_is_llamas():
    ours, library = llama_attention()
    x, other = (normal(2, 40, D_MODEL).requires_grad_() for _ in range(2))
    found, expected = ours(x), library(other)
    assert error(found, expected) < 1e-5
    found.square().sum().backward()
    expected.square().sum().backward()
    assert error(x.grad, other.grad) < 1e-5


@torch.no_grad()
def test_attentions_parity_fails_with_another_base_of_its_angles():
    ours, library = llama_attention()
    ours.rope_base = 9_000.0
    x = normal(2, 40, D_MODEL)
    assert error(ours(x), library(x)) > 1e-3


# flash-linear-attention's layers: our name of each of their weights.
SHARED_NAMES = {
    **{f"{n}_proj.weight": f"{n}_proj.weight" for n in "qkvo"},
    **{f"{n}_conv1d.weight": f"{n}_conv.weight" for n in "qkv"},
    "o_norm.weight": "o_norm.weight",
    "g_norm_swish_gate.weight": "o_norm.weight",
    "b_proj.weight": "beta_proj.weight",
    "g_proj.weight": "gate_proj.weight",
}
LAYERS = {
    "gated_deltanet": (
        GatedDeltaNet,
        {"A_log": "decay.log_rate", "dt_bias": "decay.bias", "a_proj.weight": "decay_proj.weight"},
    ),
    "deltanet": (DeltaNet, {}),
    "gla": (
        GLA,
        {
            "gk_proj.0.weight": "decay_down.weight",
            "gk_proj.1.weight": "decay_up.weight",
            "gk_proj.1.bias": "decay_bias",
        },
    ),
    "simple_gla": (SimpleGLA, {"gk_proj.weight": "decay_proj.weight", "gk_proj.bias": "decay_bias"}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(scope="module")
def library_results(tmp_path_factory):
    """What flash-linear-attention's layers give, by its own kernels in the interpreter (see library_layers.py)."""
    path = tmp_path_factory.mktemp("library") / "results.pt"
    program = str(Path(__file__).with_name("library_layers.py"))
    done = subprocess.run([sys.executable, program, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def layer_with_its_weights(name: str, weights: dict):
    mixer_class, names = LAYERS[name]
    mixer = mixer_class(D_MODEL, HEADS, K, V)
    renamed = {(SHARED_NAMES | names)[n]: w.squeeze(1) if "conv1d" in n else w for n, w in weights.items()}
    mixer.load_state_dict(renamed)
    return mixer


@each_layer
def test_layer_is_the_librarys(name, library_results):
    result = library_results[name]
    mixer = layer_with_its_weights(name, result["weights"])
    x = result["x"].requires_grad_()
    y = mixer(x)
    assert result["y"].std() > 0.05
    assert error(y, result["y"]) < 1e-5
    if result["gradients"] is None:
        assert name in ("gated_deltanet", "simple_gla")
        return
    y.square().sum().backward()
    names = SHARED_NAMES | LAYERS[name][1]
    parameters = dict(mixer.named_parameters())
    assert error(x.grad, result["gradients"].pop("x")) < 1e-5
    for library_name, gradient in result["gradients"].items():
        own = parameters[names[library_name]].grad
        assert error(own, gradient.squeeze(1) if "conv1d" in library_name else gradient) < 1e-5, library_name


@each_layer
@torch.no_grad()
def test_layers_parity_fails_where_one_constant_is_another(name, library_results, monkeypatch):
    """Twice the write strength of the delta rules; a sixteenth of the decay's divisor of the others."""
    result = library_results[name]
    mixer = layer_with_its_weights(name, result["weights"])
    if name in ("gla", "simple_gla"):
        monkeypatch.setattr("palimpsa.mixers.gla.GATE_TEMPERATURE", GATE_TEMPERATURE / 16)
    else:
        sigmoid = torch.sigmoid
        monkeypatch.setattr(torch, "sigmoid", lambda x: 2 * sigmoid(x))
    assert error(mixer(result["x"]), result["y"]) > 1e-3


def written_out(q, k, v, log_decay, beta, state, scale=K**-0.5, delta=True):
    """The recurrences in float64: log_decay [B, T, H, K or 1]; without `delta` nothing is taken off before a write."""
    o = []
    for t in range(q.shape[1]):
        state = log_decay[:, t, :, :, None].exp() * state
        recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], state) if delta else 0.0
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - recalled))
        o.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(o, dim=1), state


def operands(rule: str):
    """q, k, v, log decay, beta and a state of 11 tokens; decays and write strengths that the rule does not have: 1."""
    shape = (2, 11, HEADS)
    q, k, v = (normal(*shape, n, seed=s) for s, n in enumerate((K, K, V)))
    channels = K if rule == "gla" else 1
    log_decay = F.logsigmoid(normal(*shape, channels, seed=3)) if rule != "delta_rule" else torch.zeros(*shape, 1)
    beta = torch.sigmoid(normal(*shape, seed=4)) if "delta" in rule else torch.ones(shape)
    return q, F.normalize(k, dim=-1), v, log_decay, beta, normal(2, HEADS, K, V, seed=5)


def by_our_function(rule: str, q, k, v, log_decay, beta, state):
    arguments = {
        "gla": (log_decay,),
        "simple_gla": (log_decay[..., 0],),
        "delta_rule": (beta,),
        "gated_delta_rule": (beta, log_decay[..., 0]),
    }
    return getattr(recurrences, rule)(q, k, v, *arguments[rule], state, None)


def outputs_and_gradients(run, tensors):
    tensors = [x.clone().requires_grad_() for x in tensors]
    o, state = run(*tensors)
    (o.square().sum() + state.square().sum()).backward()
    return [o.detach(), state.detach(), *(x.grad for x in tensors if x.grad is not None)]


RULES = ("gla", "simple_gla", "delta_rule", "gated_delta_rule")
each_rule = pytest.mark.parametrize("rule", RULES)


@each_rule
def test_reference_recurrence_is_its_equation_with_all_gradients(rule):
    tensors = operands(rule)
    found = outputs_and_gradients(lambda *x: by_our_function(rule, *x), tensors)
    # Those that the rule does not have stay constant.
    used = [i for i in range(6) if (i != 3 or rule != "delta_rule") and (i != 4 or "delta" in rule)]

    def definition(*own):
        full = [x.double() for x in tensors]
        for i, x in zip(used, own, strict=True):
            full[i] = x
        return written_out(*full, delta="delta" in rule)

    expected = outputs_and_gradients(definition, [tensors[i].double() for i in used])
    assert len(found) == len(expected) == 2 + len(used)
    assert max(error(a.double(), b) for a, b in zip(found, expected, strict=True)) < 1e-5
    # And not another one.
    q, k, v, log_decay, beta, state = (x.double() for x in tensors)
    altered = [
        written_out(2 * q, k, v, log_decay, beta, state, delta="delta" in rule)[0],
        written_out(q, k, v, log_decay, 2 * beta, state, delta="delta" in rule)[0],
        written_out(q, k, v, log_decay - 0.01, beta, state, delta="delta" in rule)[0],
        written_out(q, k, v, log_decay, beta, state, delta="delta" not in rule)[0],
    ]
    assert min(error(found[0].double(), other) for other in altered) > 1e-3


def chunked(rule: str, q, k, v, log_decay, beta, state):
    """The library's other references: in chunks, or all at once; outputs from a state of zeros."""
    from fla.ops.delta_rule.naive import delta_rule_chunkwise
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    from fla.ops.simple_gla.naive import naive_parallel_simple_gla

    if rule == "simple_gla":
        return naive_parallel_simple_gla(q, k, v, log_decay[..., 0])[0]
    if rule == "gated_delta_rule":
        return naive_chunk_gated_delta_rule(q, k, v, log_decay[..., 0], beta, chunk_size=4)[0]
    return delta_rule_chunkwise(*(x.transpose(1, 2) for x in (q, k, v, beta)), chunk_size=11)[0].transpose(1, 2)


@pytest.mark.parametrize("rule", RULES[1:])
def test_recurrence_is_the_librarys_chunked_one_with_all_gradients(rule):
    tensors = operands(rule)[:5]
    nothing = torch.zeros(2, HEADS, K, V)

    def ours(*x):
        return by_our_function(rule, *x, nothing)[0], nothing

    def library(*x):
        return chunked(rule, *x, nothing), nothing

    found, expected = outputs_and_gradients(ours, tensors), outputs_and_gradients(library, tensors)
    assert len(found) == len(expected) >= 6
    assert max(error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5
    altered = outputs_and_gradients(library, [2 * tensors[0], *tensors[1:]])
    assert max(error(a, b) for a, b in zip(found, altered, strict=True)) > 1e-3


def test_the_delta_rule_is_the_gated_one_without_decay():
    """What a GPU runs for DeltaNet in fp32, where the library has no kernel of the rule itself."""
    q, k, v, _, beta, state = operands("delta_rule")
    found = recurrences.gated_delta_rule(q, k, v, beta, torch.zeros_like(beta), state, None)
    for a, b in zip(found, recurrences.delta_rule(q, k, v, beta, state, None), strict=True):
        assert error(a, b) < 1e-6
