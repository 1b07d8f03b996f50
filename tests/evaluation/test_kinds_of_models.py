"""A model that looks at what comes after a token is no language model whose words can be scored: it is refused."""

import json

import pytest
import torch

from palimpsa.config.errors import ConfigError

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
V = 32


def saved(kind: str, folder, vocab_size: int = V, **more):
    import transformers

    config_class = getattr(transformers, kind).config_class
    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8} if kind.startswith("T5") else SIZES
    if kind.startswith("Bart"):
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config_class(vocab_size=vocab_size, **sizes, **more))
    model.save_pretrained(folder)
    return model


# Imported late: see conftest.py.
def load(folder):
    from palimpsa.evaluation.models.public_folders import model_of_a_folder

    return model_of_a_folder(folder, torch.device("cpu"))


@pytest.mark.parametrize(
    "kind",
    [
        *("BertForMaskedLM", "RobertaForMaskedLM", "ElectraForPreTraining", "BertForSequenceClassification"),
        *(
            "T5EncoderModel",
            "T5ForConditionalGeneration",
            "BartForConditionalGeneration",
            "LlamaForTokenClassification",
        ),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_architecture(kind, tmp_path):
    saved(kind, tmp_path)
    with pytest.raises(ConfigError, match=f"^checkpoint: got {kind} in .*, expected a causal language model") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM"])
def test_a_head_for_language_on_an_encoder_is_refused_by_what_it_reads(kind, tmp_path):
    """transformers warns, and scores each token with a look at those after it; as a decoder it does not look."""
    saved(kind, tmp_path / "encoder", is_decoder=False)
    with pytest.raises(ConfigError, match=f"^checkpoint: got {kind} in .*, expected a causal language model"):
        load(tmp_path / "encoder")
    saved(kind, tmp_path / "decoder", is_decoder=True)
    assert type(load(tmp_path / "decoder")).__name__ == kind


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "OPTForCausalLM"])
def test_causal_models_are_loaded(kind, tmp_path):
    saved(kind, tmp_path)
    assert type(load(tmp_path)).__name__ == kind


# The last of eight tokens is 8, of as many words 0.
@pytest.mark.parametrize("vocab_size", [8, 4, 2])
def test_an_encoder_of_few_words_is_refused_too(vocab_size, tmp_path):
    saved("BertLMHeadModel", tmp_path, vocab_size, is_decoder=False)
    with pytest.raises(ConfigError, match=r"^checkpoint: got BertLMHeadModel in .*, expected a causal language model"):
        load(tmp_path)


@torch.no_grad()
def test_a_model_whose_logits_are_not_finite_is_told_as_such(tmp_path):
    model = saved("LlamaForCausalLM", tmp_path)
    model.model.norm.weight.fill_(3e38)
    model.lm_head.weight.mul_(1e3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^checkpoint: got LlamaForCausalLM in .* with logits that are not finite, "):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model_type": ["x"]}, r'model_type is \["x"\], expected a non-empty string'),
        ({"model_type": None}, "model_type is null, expected a non-empty string"),
        ({"model_type": "llama", "architectures": 3}, "architectures is 3, expected a list"),
        ({"model_type": "t5", "architectures": [["x"]]}, None),
    ],
)
def test_a_config_that_is_none_of_transformers_is_told_with_its_key(content, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    error = "got .* in .*, expected a causal" if told is None else f".*config.json: {told}$"
    with pytest.raises(ConfigError, match=f"^checkpoint: {error}"):
        load(tmp_path)


def test_another_kind_is_told_before_its_tokenizer_is_looked_for(tmp_path):
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.schema import load

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5EncoderModel"]}))
    with pytest.raises(ConfigError, match=r"^checkpoint: got T5EncoderModel in"):
        load_evaluated(load([f"checkpoint={tmp_path}", "device=cpu"]))
