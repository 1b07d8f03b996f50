"""`generate`: greedy, sampled and by beams, batched as alone, in constant memory."""

# B batch, T time

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import DynamicCache, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast, StaticCache, set_seed

from palimpsa.model.hf import MixerCacheLayer

LENGTHS = (3, 9, 6)
PADDING = 40
KINDS = ("palimpsa_d", "palimpsa_d_nometa", "palimpsa_m", "gated_deltanet", "transformer")
each_kind = pytest.mark.parametrize("name", KINDS)
WAYS = {"greedy": {}, "beams": {"num_beams": 3, "num_return_sequences": 2}}


@pytest.fixture
def prompts(draw_tokens):
    """Three prompts alone, and the same as one batch, padded at the left, with its mask."""
    alone = [draw_tokens(1, length, seed=length) for length in LENGTHS]
    widest = max(LENGTHS)
    batch, mask = torch.full((3, widest), PADDING), torch.zeros(3, widest, dtype=torch.long)
    for row, prompt in enumerate(alone):
        batch[row, widest - prompt.shape[1] :] = prompt
        mask[row, widest - prompt.shape[1] :] = 1
    return alone, batch, mask


def generate(model, tokens, **options):
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": PADDING}
    # What has not learnt anything says one word for ever.
    settings |= {"no_repeat_ngram_size": 2, "suppress_tokens": [PADDING]}
    return model.generate(tokens, **(settings | options))[:, tokens.shape[1] :]


@each_kind
@pytest.mark.parametrize("way", WAYS)
def test_a_left_padded_batch_writes_what_each_prompt_alone_does(name, way, make_model, prompts):
    model, (alone, batch, mask) = make_model(name), prompts
    together = generate(model, batch, attention_mask=mask, **WAYS[way])
    each = [generate(model, prompt, attention_mask=torch.ones_like(prompt), **WAYS[way]) for prompt in alone]
    assert torch.equal(together, torch.cat(each))
    # It is the prompt that is gone on from.
    assert len({tuple(row) for row in together.tolist()}) == len(together)


@each_kind
@torch.no_grad()
def test_tokens_are_those_of_the_native_model_without_a_cache(name, make_model, draw_tokens):
    model, tokens = make_model(name), draw_tokens(2, 5)
    written = generate(model, tokens, no_repeat_ngram_size=0, suppress_tokens=None)
    expected = tokens
    for _ in range(12):
        expected = torch.cat([expected, model.model(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, expected[:, 5:])
    for way in WAYS.values():
        assert torch.equal(generate(model, tokens, use_cache=False, **way), generate(model, tokens, **way))


@pytest.mark.parametrize("name", ["palimpsa_d", "transformer"])
def test_a_prompt_in_pieces_writes_the_same(name, make_model, prompts):
    model, (_, batch, mask) = make_model(name), prompts
    whole = generate(model, batch, attention_mask=mask)
    assert torch.equal(generate(model, batch, attention_mask=mask, prefill_chunk_size=2), whole)


@pytest.mark.parametrize("way", WAYS)
def test_embeddings_are_gone_on_from_as_their_tokens_are(way, make_model, prompts):
    model, (_, batch, mask) = make_model("palimpsa_d"), prompts
    embeddings = model.get_input_embeddings()(batch).detach()
    expected = generate(model, batch, attention_mask=mask, no_repeat_ngram_size=0, **WAYS[way])
    # No tokens come before what is written.
    empty = batch[:, :0]
    found = generate(model, empty, inputs_embeds=embeddings, attention_mask=mask, no_repeat_ngram_size=0, **WAYS[way])
    assert torch.equal(found, expected)


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer of which every token is a letter of its own."""
    words = Tokenizer(WordLevel({chr(65 + token): token for token in range(41)}))
    words.pre_tokenizer, words.decoder = Split("", "isolated"), Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.mark.parametrize("way", WAYS)
def test_a_text_ends_with_a_stop_string(way, make_model, draw_tokens):
    model, tokens = make_model("palimpsa_d"), draw_tokens(1, 5)
    options = {**WAYS[way], "num_return_sequences": 1}
    whole = generate(model, tokens, **options)[0].tolist()
    ends = "".join(chr(65 + token) for token in whole[3:5])
    stopped = generate(model, tokens, stop_strings=[ends], tokenizer=letters(), min_new_tokens=0, **options)
    assert stopped[0].tolist() == whole[:5]


def test_sampling_follows_the_seed(make_model, draw_tokens):
    model, tokens = make_model("palimpsa_m"), draw_tokens(2, 5)
    written = []
    for seed in (1, 1, 2):
        set_seed(seed)
        written.append(generate(model, tokens, do_sample=True, top_k=20, temperature=1.5))
    assert torch.equal(written[0], written[1])
    assert not torch.equal(written[0], written[2])


def test_a_conversation_goes_on_from_its_cache(make_model, draw_tokens):
    model, tokens = make_model("palimpsa_d"), draw_tokens(1, 6)
    once = model.generate(tokens, max_new_tokens=8, do_sample=False)
    first = model.generate(tokens, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    then = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(then, once)


def num_bytes(cache) -> int:
    tensors = []
    for layer in cache.layers:
        assert isinstance(layer, MixerCacheLayer)
        tensors += [x for x in (*layer.conv_states.values(), *layer.recurrent_states.values()) if x is not None]
        tensors += [x for x in (layer.keys, layer.values) if x is not None]
    return sum(x.untyped_storage().nbytes() for x in tensors)


def test_twenty_thousand_tokens_take_the_memory_of_one(make_model, draw_tokens):
    """18,000 read in pieces, 2,000 written."""
    settings = {"do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}

    def bytes_after(model, num_read: int, num_written: int) -> int:
        options = {"max_new_tokens": num_written, "prefill_chunk_size": 3_000, **settings}
        written = model.generate(draw_tokens(1, num_read), **options)
        assert written.sequences.shape[1] == num_read + num_written
        return num_bytes(written.past_key_values)

    model = make_model("palimpsa_d", num_layers=1)
    assert bytes_after(model, 18_000, 2_000) == bytes_after(model, 1, 1)
    # Attention's is what grows.
    attention = make_model("transformer", num_layers=1)
    assert bytes_after(attention, 40, 20) > 4 * bytes_after(attention, 1, 1)


@pytest.mark.parametrize("name", ["palimpsa_d", "transformer"])
@pytest.mark.parametrize("way", WAYS)
def test_an_offloaded_cache_writes_the_same(name, way, make_model, prompts):
    model, (_, batch, mask) = make_model(name), prompts
    whole = generate(model, batch, attention_mask=mask, **WAYS[way])
    offloaded = generate(model, batch, attention_mask=mask, cache_implementation="offloaded", **WAYS[way])
    assert torch.equal(offloaded, whole)


@pytest.mark.parametrize("wanted", ["static", "offloaded_static", "quantized", "hybrid", "sliding_window", "paged"])
def test_a_cache_that_holds_no_memory_is_refused(wanted, make_model, draw_tokens):
    model, tokens = make_model("palimpsa_d"), draw_tokens(1, 5)
    error = f"cache_implementation: got '{wanted}', expected 'dynamic', which is the default, or 'offloaded'"
    with pytest.raises(ValueError, match=error):
        model.generate(tokens, max_new_tokens=2, cache_implementation=wanted)
    # As a folder's generation_config.json may have it.
    config = GenerationConfig(max_new_tokens=2)
    config.cache_implementation = wanted
    with pytest.raises(ValueError, match=error):
        model.generate(tokens, config)
    assert model.generate(tokens, config, cache_implementation="dynamic").shape == (1, 7)
    # What a config leaves open is as the model's own has it.
    model.generation_config.cache_implementation = wanted
    for given in (None, GenerationConfig(max_new_tokens=2)):
        with pytest.raises(ValueError, match=error):
            model.generate(tokens, given)
    config.cache_implementation = "dynamic"
    assert model.generate(tokens, config).shape == (1, 7)


@pytest.mark.parametrize("kind", ["static", "without layers", "of another model", "tuple"])
def test_a_cache_of_another_kind_is_refused_by_name(kind, make_model, draw_tokens):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50, **sizes)
    cache, name = {
        "static": (StaticCache(config=config, max_cache_len=16), "StaticCache with 2 of StaticLayer, "),
        "without layers": (DynamicCache(), "DynamicCache with 0 of no layers, "),
        "of another model": (DynamicCache(config=config), "DynamicCache with 2 of DynamicLayer, "),
        "tuple": (((torch.zeros(1), torch.zeros(1)),), "tuple with 0 of no layers, "),
    }[kind]
    error = f"^past_key_values: got {name}expected DynamicCache\\(config=model.config\\), 2 of MixerCacheLayer$"
    with pytest.raises(ValueError, match=error):
        make_model("palimpsa_d").generate(draw_tokens(1, 5), max_new_tokens=2, past_key_values=cache)
