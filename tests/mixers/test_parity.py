"""Each model against its own library, weights copied: transformers' Mamba-2 and Llama, flash-linear-attention's layers.

What the libraries give is computed on the CPU; ours on the CPU and, where there is one, on a GPU with the kernels that
train there. Each comparison is shown to fail when one constant is altered.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from palimpsa.kernels.fla import recurrences
from palimpsa.mixers import GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaM, SimpleGLA
from palimpsa.mixers.gla import GATE_TEMPERATURE
from palimpsa.model.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[2]
D_MODEL, HEADS, K, V = 32, 2, 16, 32
# As in library_layers.py: not the default of ours, and large enough to be seen.
NORM_EPS = 1e-3
# flash-linear-attention's kernels multiply fp32 numbers in TF32, which keeps 10 bits of them.
TOLERANCE = {"cpu": 1e-5, "cuda": 4e-3}


def normal(*shape: int, seed: int = 1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found, expected) -> float:
    """Largest difference, relative to the largest number."""
    assert found.shape == expected.shape
    found, expected = found.cpu(), expected.cpu()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# transformers' Mamba-2: hidden 32, inner width 64 in 8 heads of 8, state 6.
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
    "mixer.in_proj.bias": "mixer.in_proj.bias",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
    "mixer.out_proj.bias": "mixer.out_proj.bias",
}


NO_LIMIT = (0.0, float("inf"))


def mamba2_pair(
    num_groups: int, conv_bias=True, limit=NO_LIMIT, projection_bias=False, *, own_limit="same", num_norm_groups=None
):
    """transformers' Mamba2ForCausalLM with random weights, and ours with the same ones."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    own_limit = limit if own_limit == "same" else own_limit
    config = Mamba2Config(
        vocab_size=23,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=6,
        expand=2,
        n_groups=num_groups,
        conv_kernel=4,
        chunk_size=8,
        use_conv_bias=conv_bias,
        use_bias=projection_bias,
        time_step_limit=limit,
        tie_word_embeddings=True,
        layer_norm_epsilon=NORM_EPS,
    )
    library = Mamba2ForCausalLM(config).eval()
    if num_norm_groups is None:
        num_norm_groups = mamba2_norm_groups(library)

    def make_mixer(d_model: int) -> PalimpsaM:
        return PalimpsaM(
            d_model,
            8,
            6,
            8,
            metaplastic=False,
            num_groups=num_groups,
            conv_bias=conv_bias,
            projection_bias=projection_bias,
            num_norm_groups=num_norm_groups,
            step_size_limit=own_limit,
            norm_eps=NORM_EPS,
        )

    ours = LanguageModel(23, D_MODEL, 2, make_mixer, norm="rmsnorm", norm_eps=NORM_EPS, generator=None)
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


def mamba2_norm_groups(library) -> int:
    """Mamba-2 normalises the heads of each group of keys by themselves; transformers 5.17 took them all together."""
    norm = library.backbone.layers[0].mixer.norm
    return norm.weight.numel() // getattr(norm, "group_size", norm.weight.numel())


TOKENS = torch.randint(0, 23, (2, 75), generator=torch.Generator().manual_seed(0))


def logits_step_by_step(model, tokens):
    caches = model.new_caches(tokens.shape[0])
    return torch.stack([model.step(tokens[:, t], caches) for t in range(tokens.shape[1])], dim=1)


@pytest.mark.parametrize(
    ("num_groups", "conv_bias", "limit", "projection_bias"),
    [
        *((1, True, NO_LIMIT, False), (8, True, NO_LIMIT, True), (2, False, NO_LIMIT, False)),
        *((1, True, (0.4, 0.9), False), (8, False, (0.0, 0.5), False)),
    ],
    ids=["G1", "G8-projection_bias", "G2-no_conv_bias", "G1-dt0.4to0.9", "G8-no_conv_bias-dt0to0.5"],
)
@torch.no_grad()
def test_mamba2_has_the_logits_of_transformers(device, num_groups, conv_bias, limit, projection_bias):
    library, ours = mamba2_pair(num_groups, conv_bias, limit, projection_bias)
    ours, tokens = ours.to(device), TOKENS.to(device)
    expected = library(TOKENS).logits
    assert expected.std() > 0.1
    assert error(ours(tokens), expected) < 1e-4
    assert error(logits_step_by_step(ours, tokens[:, :9]), expected[:, :9]) < 1e-4


def test_mamba2_has_the_gradients_of_transformers(device):
    library, ours = mamba2_pair(8, limit=(0.4, 0.9), projection_bias=True)
    ours.to(device)
    library(TOKENS).logits.square().mean().backward()
    ours(TOKENS.to(device)).square().mean().backward()
    gradients = dict(library.named_parameters())
    for number in range(2):
        for name, own in MAMBA2_NAMES.items():
            if name.startswith(("mixer", "norm")):
                expected = gradients[f"backbone.layers.{number}.{name}"].grad
                found = ours.get_parameter(f"blocks.{number}.{own}").grad
                assert expected.abs().max() > 0, name
                assert error(found, expected.reshape(found.shape)) < 1e-4, name
    assert error(ours.embedding.weight.grad, gradients["backbone.embeddings.weight"].grad) < 1e-4


@torch.no_grad()
def test_mamba2s_parity_fails_where_one_part_is_another(device):
    library, ours = mamba2_pair(2)
    expected = library(TOKENS).logits
    tokens = TOKENS.to(device)
    other = 3 - mamba2_norm_groups(library)
    assert error(mamba2_pair(2, num_norm_groups=other)[1].to(device)(tokens), expected) > 1e-2
    assert error(mamba2_pair(2, own_limit=(0.4, 0.9))[1].to(device)(tokens), expected) > 1e-3
    ours.to(device)
    for name in ("skip", "decay.bias", "decay.log_rate"):
        parameter = ours.blocks[0].mixer.get_parameter(name)
        parameter.add_(0.1)
        assert error(ours(tokens), expected) > 1e-3
        parameter.sub_(0.1)
    ours.blocks[0].mixer.scale = K**-0.5
    assert error(ours(tokens), expected) > 1e-3


LLAMA_NAMES = {
    "model.embed_tokens": "embedding",
    "lm_head": "embedding",
    "model.norm": "norm",
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "channel_norm",
    "self_attn": "mixer",
    "mlp": "channel_mixer",
}


def llama_pair():
    """transformers' LlamaForCausalLM with random weights, and ours with the same ones: softmax attention and SwiGLU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=23,
        hidden_size=D_MODEL,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=8,
        rms_norm_eps=NORM_EPS,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    library = LlamaForCausalLM(config).eval()

    def make_mixer(d_model: int) -> Attention:
        return Attention(d_model, HEADS, 8, 8, conv_width=0)

    skeleton = {"norm": "rmsnorm", "norm_eps": NORM_EPS, "channel_mixer": "swiglu", "channel_width": 40}
    ours = LanguageModel(23, D_MODEL, 2, make_mixer, **skeleton, generator=None)
    weights = {}
    for seed, (name, weight) in enumerate(library.state_dict().items()):
        weight.copy_((1.0 if "norm" in name else 0.0) + 0.3 * normal(*weight.shape, seed=seed))
        weights[llama_name(name)] = weight
    ours.load_state_dict(weights)
    return library, ours


def llama_name(name: str) -> str:
    """Our name of one of its weights."""
    name = name.replace("model.layers.", "blocks.")
    for theirs, own in LLAMA_NAMES.items():
        name = name.replace(theirs, own)
    return name


def test_transformer_is_llama(device):
    library, ours = llama_pair()
    ours, tokens = ours.to(device), TOKENS.to(device)
    expected = library(TOKENS).logits
    assert expected.std() > 0.1
    found = ours(tokens)
    assert error(found, expected) < 1e-5
    assert error(logits_step_by_step(ours, tokens[:, :9]), expected[:, :9]) < 1e-5
    expected.square().mean().backward()
    found.square().mean().backward()
    for name, parameter in library.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        assert error(ours.get_parameter(llama_name(name)).grad, parameter.grad) < 1e-5, name


@torch.no_grad()
def test_transformers_parity_fails_with_another_base_of_its_angles(device):
    library, ours = llama_pair()
    for block in ours.blocks:
        block.mixer.rope_base = 9_000.0
    assert error(ours.to(device)(TOKENS.to(device)), library(TOKENS).logits) > 1e-3


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
    # Where there is a GPU, it is not asked.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def layer_with_its_weights(name: str, weights: dict):
    mixer_class, names = LAYERS[name]
    mixer = mixer_class(D_MODEL, HEADS, K, V, norm_eps=NORM_EPS)
    renamed = {(SHARED_NAMES | names)[n]: w.squeeze(1) if "conv1d" in n else w for n, w in weights.items()}
    mixer.load_state_dict(renamed)
    return mixer


@each_layer
def test_layer_is_the_librarys(name, device, library_results):
    result = library_results[name]
    mixer = layer_with_its_weights(name, result["weights"]).to(device)
    x = result["x"].detach().to(device).requires_grad_()
    y = mixer(x)
    assert result["y"].std() > 0.01
    assert error(y, result["y"]) < TOLERANCE[device]
    if result["gradients"] is None:
        assert name in ("gated_deltanet", "simple_gla")
        return
    y.square().sum().backward()
    names = SHARED_NAMES | LAYERS[name][1]
    parameters = dict(mixer.named_parameters())
    for library_name, gradient in result["gradients"].items():
        own = x.grad if library_name == "x" else parameters[names[library_name]].grad
        assert gradient.abs().max() > 0, library_name
        expected = gradient.squeeze(1) if "conv1d" in library_name else gradient
        assert error(own, expected) < TOLERANCE[device], library_name


@each_layer
@torch.no_grad()
def test_layers_parity_fails_where_one_constant_is_another(name, device, library_results, monkeypatch):
    """Twice the write strength of the delta rules; a sixteenth of the decay's divisor of the others."""
    result = library_results[name]
    mixer = layer_with_its_weights(name, result["weights"]).to(device)
    if name in ("gla", "simple_gla"):
        monkeypatch.setattr("palimpsa.mixers.gla.GATE_TEMPERATURE", GATE_TEMPERATURE / 16)
    else:
        sigmoid = torch.sigmoid
        monkeypatch.setattr(torch, "sigmoid", lambda x: 2 * sigmoid(x))
    assert error(mixer(result["x"].to(device)), result["y"]) > 5 * TOLERANCE[device]


def written_out(q, k, v, log_decay, beta, state, scale=K**-0.5, delta=True):
    """The recurrences in float64: log_decay [B, T, H, K or 1]; without `delta` nothing is taken off before a write."""
    o = []
    for t in range(q.shape[1]):
        state = log_decay[:, t, :, :, None].exp() * state
        recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], state) if delta else 0.0
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - recalled))
        o.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(o, dim=1), state


def operands(rule: str, num_tokens: int = 11):
    """q, k, v, log decay, beta and a state; decays and write strengths that the rule does not have: 1."""
    shape = (2, num_tokens, HEADS)
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
# On a GPU more than one chunk of 64.
NUM_TOKENS = {"cpu": 11, "cuda": 150}


@each_rule
def test_recurrence_is_its_equation_with_all_gradients(rule, device):
    tensors = operands(rule, NUM_TOKENS[device])
    found = outputs_and_gradients(lambda *x: by_our_function(rule, *x), [x.to(device) for x in tensors])
    # Those that the rule does not have stay constant.
    used = [i for i in range(6) if (i != 3 or rule != "delta_rule") and (i != 4 or "delta" in rule)]

    def definition(*own):
        full = [x.double() for x in tensors]
        for i, x in zip(used, own, strict=True):
            full[i] = x
        return written_out(*full, delta="delta" in rule)

    expected = outputs_and_gradients(definition, [tensors[i].double() for i in used])
    assert len(found) == len(expected) == 2 + len(used)
    errors = [error(a.double(), b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < TOLERANCE[device], errors
    # And not another one.
    q, k, v, log_decay, beta, state = (x.double() for x in tensors)
    altered = [
        written_out(2 * q, k, v, log_decay, beta, state, delta="delta" in rule)[0],
        written_out(q, k, v, log_decay, 2 * beta, state, delta="delta" in rule)[0],
        written_out(q, k, v, log_decay - 0.1, beta, state, delta="delta" in rule)[0],
        written_out(q, k, v, log_decay, beta, state, delta="delta" not in rule)[0],
    ]
    assert min(error(found[0].double(), other) for other in altered) > 5 * TOLERANCE[device]


def chunked(rule: str, q, k, v, log_decay, beta):
    """The library's other references, in chunks, or all at once: the outputs from a state of zeros."""
    from fla.ops.delta_rule.naive import delta_rule_chunkwise
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    from fla.ops.simple_gla.naive import naive_parallel_simple_gla

    if rule == "simple_gla":
        return naive_parallel_simple_gla(q, k, v, log_decay[..., 0])[0]
    if rule == "gated_delta_rule":
        return naive_chunk_gated_delta_rule(q, k, v, log_decay[..., 0], beta, chunk_size=4)[0]
    return delta_rule_chunkwise(*(x.transpose(1, 2) for x in (q, k, v, beta)), chunk_size=q.shape[1])[0].transpose(1, 2)


@pytest.mark.parametrize("rule", RULES[1:])
def test_recurrence_is_the_librarys_chunked_one_with_all_gradients(rule, device):
    tensors = operands(rule)[:5]

    def ours(*x):
        nothing = torch.zeros(2, HEADS, K, V, device=device)
        return by_our_function(rule, *x, nothing)[0], nothing

    def library(*x):
        return chunked(rule, *x), torch.zeros(2, HEADS, K, V)

    found = outputs_and_gradients(ours, [x.to(device) for x in tensors])
    expected = outputs_and_gradients(library, tensors)
    assert len(found) == len(expected) >= 6
    errors = [error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < TOLERANCE[device], errors
    altered = outputs_and_gradients(library, [2 * tensors[0], *tensors[1:]])
    assert max(error(a, b) for a, b in zip(found, altered, strict=True)) > 5 * TOLERANCE[device]


def test_the_delta_rule_is_the_gated_one_without_decay(device):
    """What a GPU runs for DeltaNet in fp32, where the library has no kernel of the rule itself."""
    q, k, v, _, beta, state = operands("delta_rule")
    on_device = [x.to(device) for x in (q, k, v, beta)]
    found = recurrences.gated_delta_rule(*on_device, torch.zeros_like(beta, device=device), state.to(device), None)
    for a, b in zip(found, recurrences.delta_rule(q, k, v, beta, state, None), strict=True):
        assert error(a, b) < TOLERANCE[device]


@pytest.mark.gpu
@each_rule
def test_recurrence_in_bf16_is_its_equation_roughly(rule):
    """What trains on a GPU: bf16 keeps 8 bits of each operand, and of what the kernels hand on from chunk to chunk."""
    tensors = [x.bfloat16().float() for x in operands(rule, NUM_TOKENS["cuda"])]
    low = [x.cuda().bfloat16() if i < 3 else x.cuda() for i, x in enumerate(tensors)]
    found = outputs_and_gradients(lambda *x: by_our_function(rule, *x), low)
    q, k, v, log_decay, beta, state = (x.double().requires_grad_() for x in tensors)
    o, final = written_out(q, k, v, log_decay, beta, state, delta="delta" in rule)
    (o.square().sum() + final.square().sum()).backward()
    expected = [o.detach(), final.detach(), q.grad, k.grad, v.grad]
    for a, b in zip(found, expected, strict=False):
        assert ((a.cpu().double() - b).norm() / b.norm()).item() < 0.02
