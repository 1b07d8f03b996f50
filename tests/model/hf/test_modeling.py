"""The model as transformers has it: the native one's numbers, saved, loaded, resized and trained."""

# B batch, T time, D model width, V vocabulary

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from palimpsa.config.errors import ConfigError
from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM
from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.linear_loss import linear_cross_entropy

MODELS = (
    *("palimpsa_d", "palimpsa_d_scalar", "palimpsa_d_nometa", "palimpsa_m", "palimpsa_m_scalar", "mamba2"),
    *("gla", "simple_gla", "deltanet", "gated_deltanet", "transformer"),
)
MIXER = {"_target_": "palimpsa.mixers.PalimpsaD", "num_heads": 2, "head_k_dim": 8, "head_v_dim": 8}
each_model = pytest.mark.parametrize("name", MODELS)


def is_tied(model: PalimpsaForCausalLM) -> bool:
    return model.lm_head.weight.data_ptr() == model.model.embedding.weight.data_ptr()


@each_model
@torch.no_grad()
def test_logits_are_the_native_models_bit_for_bit(name, make_model, draw_tokens):
    model, tokens = make_model(name), draw_tokens(2, 70)
    assert isinstance(model.model, LanguageModel)
    native = model.model(tokens)
    assert native.dtype == torch.float32
    assert torch.equal(model(tokens, use_cache=False).logits, native)
    caches = model.model.new_caches(2)
    first = model(tokens)
    assert torch.equal(first.logits, model.model(tokens, caches=caches))
    # And decoding.
    cache = first.past_key_values
    for token in draw_tokens(3, 2, seed=1):
        assert torch.equal(model(token[:, None], past_key_values=cache).logits[:, 0], model.model.step(token, caches))


# Property 9.
@each_model
def test_every_tensor_is_bit_equal_after_a_folder(name, make_model, tmp_path):
    model = make_model(name, context=128, eos_token_id=3)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, PalimpsaForCausalLM)
    assert not again.training
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    # One storage and one key.
    assert is_tied(again)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kept = set(file.keys())
    assert kept == {key for key in before if key != "lm_head.weight"}
    assert again.config.model_keys() == model.config.model_keys()
    assert (again.config.hidden_size, again.config.num_hidden_layers) == (32, 2)
    assert (again.config.max_position_embeddings, again.generation_config.eos_token_id) == (128, 3)


def test_the_prior_importance_is_kept(make_model, tmp_path):
    model = make_model("palimpsa_d", mixer={"importance_prior": 0.3})
    model.model.blocks[1].mixer.importance_prior.fill_(0.7)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [float(block.mixer.importance_prior[0]) for block in again.model.blocks] == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("size", [50, 30])
@torch.no_grad()
def test_a_resized_vocabulary_stays_one_tensor(size, make_model, draw_tokens, tmp_path):
    model, tokens = make_model("palimpsa_d"), draw_tokens(1, 9) % 30
    before = model(tokens).logits
    model.resize_token_embeddings(size)
    assert is_tied(model)
    assert model.lm_head.weight.shape == (size, 32)
    torch.testing.assert_close(model(tokens).logits[..., :30], before[..., :30])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert is_tied(again)
    assert again.config.vocab_size == size
    assert torch.equal(again.model(tokens), again(tokens).logits)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_head_that_is_not_tied_is_a_matrix_of_its_own(make_model, draw_tokens, tmp_path):
    model, tokens = make_model("mamba2", tie_word_embeddings=False), draw_tokens(2, 9)
    head, embedding = model.model.head.weight, model.model.embedding.weight
    assert not torch.equal(head, embedding)
    with torch.no_grad():
        logits = model(tokens).logits
        torch.testing.assert_close(logits, model.model.hidden(tokens) @ head.T)
    model(tokens, labels=tokens).loss.backward()
    assert head.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.model_keys()["tie_word_embeddings"] is False
    assert again.state_dict().keys() == model.state_dict().keys()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, logits)
        again.resize_token_embeddings(50)
        assert again.model.head.weight.shape == again.model.embedding.weight.shape == (50, 32)
        torch.testing.assert_close(again(tokens).logits[..., :41], logits)


@each_model
def test_the_loss_is_the_trainers(name, make_model, draw_tokens):
    model, tokens = make_model(name), draw_tokens(2, 33)
    labels = tokens.clone()
    labels[1, 20:] = -100
    loss = model(tokens, labels=labels).loss
    hidden = model.model.hidden(tokens)[:, :-1].flatten(0, 1)
    expected = linear_cross_entropy(hidden, model.model.embedding.weight, labels[:, 1:].flatten()).mean
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    halved = model(tokens, labels=labels, num_items_in_batch=2 * (labels[:, 1:] >= 0).sum()).loss
    torch.testing.assert_close(halved, expected / 2, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(loss, model.model.embedding.weight, retain_graph=True)[0]
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, model.model.embedding.weight)[0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_m", "gated_deltanet", "transformer"])
@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_a_padded_batch_has_the_loss_of_its_rows_alone(side, name, make_model, draw_tokens):
    """Where padding is at the left, the first token of a row has nothing before it to be predicted from."""
    model, tokens = make_model(name), draw_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[1, {"left": slice(0, 5), "right": slice(7, 12), "between": slice(4, 9)}[side]] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    short = tokens[1:, mask[1] == 1]
    alone = [model(row, labels=row, num_items_in_batch=1).loss for row in (tokens[:1], short)]
    expected = sum(alone) / (11 + 6)
    loss = model(tokens, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    weight = model.model.embedding.weight
    found, wanted = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["palimpsa_d", "transformer"])
def test_gradient_checkpointing_changes_no_bit(name, make_model, draw_tokens, monkeypatch):
    model, tokens = make_model(name).train(), draw_tokens(2, 20)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        return [weight.grad.clone() for weight in model.parameters()]

    plain, calls = gradients(), []
    block = type(model.model.blocks[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *a, **k: (calls.append(1), forward(self, *a, **k))[1])
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    assert all(torch.equal(x, y) for x, y in zip(gradients(), plain, strict=True))
    # Of two blocks each is computed twice.
    assert len(calls) == 4
    model.activation_checkpointing_disable()
    gradients()
    assert len(calls) == 6
    with pytest.raises(ValueError, match=r"gradient_checkpointing_kwargs: got .*True.*, expected use_reentrant=False"):
        model.activation_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_m", "gla", "transformer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_near_and_keeps_its_memory_in_fp32(name, dtype, make_model, draw_tokens, tmp_path):
    model, tokens = make_model(name), draw_tokens(2, 12)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    dtypes = {key: weight.dtype for key, weight in half.state_dict().items()}
    assert half.dtype == dtypes["lm_head.weight"] == dtype
    narrow = [key for key, found in dtypes.items() if found != torch.float32]
    assert not [key for key in narrow if any(x in key for x in ("log_rate", "decay.bias", "decay_bias", "prior"))]
    assert any("q_proj" in key or "in_proj" in key for key in narrow)
    found = half(tokens)
    assert found.logits.dtype == dtype
    torch.testing.assert_close(found.logits.float(), model(tokens).logits, atol=0.5, rtol=0.1)
    layer = found.past_key_values.layers[0]
    assert all(x is None or x.dtype == torch.float32 for x in layer.recurrent_states.values())
    assert half.generate(tokens, max_new_tokens=3, do_sample=False).shape == (2, 15)


@torch.no_grad()
def test_a_device_map_places_blocks_and_gives_the_same(make_model, draw_tokens, tmp_path):
    """The first block's weights stay on the disk, between two that are in memory."""
    model, tokens = make_model("palimpsa_d"), draw_tokens(2, 7)
    model.save_pretrained(tmp_path)
    places = {"model.embedding": "cpu", "model.blocks.0": "disk", "model.blocks.1": "cpu", "model.norm": "cpu"}
    places["lm_head"] = "cpu"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert again.hf_device_map == places
    assert again.model.blocks[0].mixer.q_proj.weight.device.type == "meta"
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    written = again.generate(tokens, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, model.generate(tokens, max_new_tokens=4, do_sample=False))


@torch.no_grad()
def test_embeddings_hidden_states_and_some_logits_can_be_asked_for(make_model, draw_tokens):
    model, tokens = make_model("palimpsa_m"), draw_tokens(2, 8)
    plain = model(tokens, output_hidden_states=True)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(tokens)).logits, plain.logits)
    # A product of fewer rows may be rounded otherwise.
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, plain.logits[:, -3:], rtol=1e-5, atol=1e-6)
    assert len(plain.hidden_states) == 3
    assert torch.equal(plain.hidden_states[0], model.model.embedding(tokens))
    assert torch.equal(model.lm_head(plain.hidden_states[-1]), plain.logits)
    mask = torch.ones_like(tokens)
    mask[:, :2] = 0
    padded = model(tokens, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(padded.hidden_states[0], plain.hidden_states[0])
    assert torch.equal(model(tokens, return_dict=False)[0], plain.logits)
    assert model(tokens, use_cache=False).past_key_values is None
    assert model.train()(tokens).past_key_values is None


class Adapter(nn.Module):
    """LoRA around a linear layer: W x + B A x."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@each_model
def test_adapters_of_linear_layers_are_trained_alone(name, make_model, draw_tokens):
    model, tokens = make_model(name).train().requires_grad_(False), draw_tokens(2, 12)
    found = [
        (parent, key) for parent in model.model.modules() for key, x in parent.named_children() if type(x) is nn.Linear
    ]
    before = model(tokens, labels=tokens).loss
    torch.manual_seed(0)
    for parent, key in found:
        setattr(parent, key, Adapter(getattr(parent, key)))
    assert torch.equal(model(tokens, labels=tokens).loss, before)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert len(weights) == 2 * len(found) > 0
    optimizer = torch.optim.SGD(weights, lr=0.03)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    # Every one of them is used.
    adapters = [adapter for adapter in model.modules() if isinstance(adapter, Adapter)]
    assert all(bool(adapter.up.any()) for adapter in adapters)
    assert model(tokens, labels=tokens).loss < before


def test_a_model_is_called_as_peft_calls_one(make_model, draw_tokens):
    # PEFT names every argument, whether it was given or not.
    model, tokens = make_model("palimpsa_d"), draw_tokens(2, 8)
    unasked = {"inputs_embeds": None, "output_attentions": None, "output_hidden_states": None, "return_dict": None}
    found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens, **unasked)
    assert torch.equal(found.loss, model(tokens, labels=tokens).loss)
    assert torch.equal(model(tokens, output_attentions=False).logits, found.logits)
    with pytest.raises(ValueError, match="output_attentions: got True, expected False"):
        model(tokens, output_attentions=True)


def test_a_new_model_starts_as_ours_do():
    sizes = {"num_heads": 2, "head_k_dim": 8, "head_v_dim": 16}
    mixer = {"_target_": "palimpsa.mixers.PalimpsaD", **sizes, "forgetting": "random", "initial_plasticity": [0.1, 1]}
    torch.manual_seed(0)
    model = PalimpsaForCausalLM(PalimpsaConfig(vocab_size=400, d_model=64, num_layers=2, mixer=mixer))
    assert float(model.lm_head.weight.std()) == pytest.approx(1 / 8, rel=0.05)
    first, second = (block.mixer for block in model.model.blocks)
    assert float(first.q_proj.weight.std()) == pytest.approx(1 / 8, rel=0.1)
    assert torch.equal(first.o_norm.weight, torch.ones(16))
    assert torch.equal(first.skip, torch.ones(2))
    for name in ("decay.log_rate", "decay.bias", "plasticity.scale", "q_conv.weight"):
        assert not torch.equal(first.get_parameter(name), second.get_parameter(name)), name


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"context": -4}, "context: got -4, expected a number of tokens >= 1, or None"),
        ({"context": "128"}, "context: got '128', expected a number of tokens"),
        ({"context": True}, "context: got True"),
        ({"vocab_size": 0}, "vocab_size: got 0, expected >= 1"),
        ({"vocab_size": "32"}, "vocab_size: got '32', expected int"),
        ({"vocab_size": True}, "vocab_size: got True, expected int"),
        ({"vocab_size": 10**30}, "vocab_size: got 10{30}, expected at most"),
        ({"num_layers": 0}, "num_layers: got 0, expected >= 1"),
        ({"num_layers": 2.5}, "num_layers: got 2.5, expected int"),
        # Told before a network of so many blocks is made.
        ({"num_layers": 10**9}, "num_layers: got 1000000000, expected at most 10000"),
        ({"hidden_size": 0}, "d_model: got 0, expected >= 1"),
        ({"d_model": "wide"}, "d_model: got 'wide', expected int"),
        ({"norm": "batch"}, "norm: got 'batch', expected one of layernorm, rmsnorm"),
        ({"norm_eps": -1.0}, "norm_eps: got -1.0, expected > 0"),
        ({"norm_eps": "1e-6"}, "norm_eps: got '1e-6', expected float"),
        ({"norm_eps": float("nan")}, "norm_eps: got nan, expected > 0"),
        ({"init_std": float("inf")}, "init_std: got inf, expected > 0"),
        ({"channel_mixer": "moe"}, "channel_mixer: got 'moe', expected one of none, swiglu"),
        ({"channel_width": -1}, "channel_width: got -1, expected >= 1"),
        ({"mixer": "palimpsa"}, "mixer: got 'palimpsa', expected dict"),
        ({"mixer": {}}, "mixer._target_: got 'None', expected the path of a mixer class"),
        ({"mixer": {"_target_": "palimpsa.mixers.PalimpsaX"}}, "mixer._target_: got .*did you mean 'palimpsa.mixers.P"),
        ({"mixer": MIXER | {"num_head": 2}}, "mixer.num_head: .*did you mean 'num_heads'"),
        ({"mixer": MIXER | {"num_heads": "2"}}, "mixer.num_heads: got '2', expected int"),
        ({"name": "a/b"}, "name: got 'a/b', expected a name for files"),
        ({"label": None}, "label: got None, expected str"),
        ({"use_cache": "no"}, "use_cache: got 'no', expected True or False"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: got 'no', expected bool"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_one_line_that_names_the_argument(changes, error):
    with pytest.raises(ConfigError, match=f"^{error}") as caught:
        PalimpsaConfig(**{"d_model": 16, "num_layers": 1, "vocab_size": 32, "mixer": MIXER} | changes)
    assert "\n" not in str(caught.value)


def test_a_config_of_before_may_lack_what_has_a_default():
    config = PalimpsaConfig(d_model=16, num_layers=1, vocab_size=32, mixer=MIXER, init_std=1, context=None)
    assert (config.norm, config.init_std, config.use_cache) == ("rmsnorm", 1, True)


def test_bad_input_is_one_clear_error(make_model, tmp_path):
    model = make_model("palimpsa_d")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(ValueError, match=r"got no weights for model.blocks.2.*and \d+ more, expected all"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PalimpsaConfig)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vocab_size", -5, "vocab_size: got -5, expected "),
        ("context", 0, "context: got 0, expected "),
        ("mixer", {**MIXER, "num_heads": 0}, "mixer.num_heads: got 0, expected "),
    ],
)
def test_what_was_changed_is_checked_again(key, value, told, tmp_path):
    config = PalimpsaConfig(mixer=MIXER, vocab_size=50, d_model=32, num_layers=1)
    config.save_pretrained(tmp_path)
    kept = (tmp_path / "config.json").read_bytes()
    for load in (PalimpsaConfig.from_pretrained, AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=f"^{told}") as caught:
            load(tmp_path, **{key: value})
        assert "\n" not in str(caught.value)
    setattr(config, key, value)
    with pytest.raises(ConfigError, match=f"^{told}"):
        config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == kept
    found, unused = PalimpsaConfig.from_pretrained(tmp_path, vocab_size=60, other=1, return_unused_kwargs=True)
    assert (found.vocab_size, unused) == (60, {"other": 1})
