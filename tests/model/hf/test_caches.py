"""Property 10 and 11: padding changes nothing, wherever it is, nor does a context in pieces; and what generates."""

# B batch, T time

import pytest
import torch
from transformers import DynamicCache

from palimpsa.model.hf import MixerCacheLayer

MODELS = (
    *("palimpsa_d", "palimpsa_d_scalar", "palimpsa_d_nometa", "palimpsa_m", "mamba2"),
    *("gla", "simple_gla", "deltanet", "gated_deltanet", "transformer"),
)
each_model = pytest.mark.parametrize("name", MODELS)
# Of several mixers what differs in how a cache is kept.
KINDS = ("palimpsa_d", "palimpsa_m", "transformer")
# 1 a token, 0 padding: at the left, right, in the middle, everywhere, and none.
MASKS = torch.tensor(
    [
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ]
)


def states(cache: DynamicCache, row: int, length: int) -> list[torch.Tensor]:
    """What a cache holds of one sequence, of attention its keys and values."""
    found = []
    for layer in cache.layers:
        assert isinstance(layer, MixerCacheLayer)
        found += [x[row] for x in layer.conv_states.values() if x is not None]
        if layer.grows:
            found += [layer.keys[row, :, :length], layer.values[row, :, :length]]
        else:
            found += [x[row] for x in layer.recurrent_states.values() if x is not None]
    return found


@each_model
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_logits_and_caches_of_a_padded_row_are_those_of_the_sequence_alone(name, use_cache, make_model, draw_tokens):
    model, tokens = make_model(name), draw_tokens(*MASKS.shape)
    together = model(tokens, attention_mask=MASKS, use_cache=use_cache)
    following = draw_tokens(len(MASKS), 2, seed=1)
    if use_cache:
        # And on from there, a token or several at a time, with padding again.
        next_mask = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]])
        later_mask = torch.cat([MASKS, next_mask], dim=1)
        later = model(following, attention_mask=later_mask, past_key_values=together.past_key_values).logits
    for row, mask in enumerate(MASKS.bool()):
        own = tokens[row, mask][None]
        alone = model(own, use_cache=use_cache)
        torch.testing.assert_close(together.logits[row, mask], alone.logits[0], atol=2e-5, rtol=1e-4)
        if not use_cache:
            continue
        more = next_mask[row].bool()
        if more.any():
            expected = model(following[row, more][None], past_key_values=alone.past_key_values).logits[0]
            torch.testing.assert_close(later[row, more], expected, atol=2e-5, rtol=1e-4)
        length = own.shape[1] + int(more.sum())
        found, expected = states(together.past_key_values, row, length), states(alone.past_key_values, 0, length)
        assert len(found) == len(expected) > 0
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)


@each_model
@pytest.mark.parametrize("pieces", [[7, 1, 5], [1] * 13, [2, 11]], ids=str)
@torch.no_grad()
def test_a_context_in_pieces_equals_the_whole(name, pieces, make_model, draw_tokens):
    model, tokens = make_model(name), draw_tokens(2, 13)
    whole, cache = model(tokens), DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.logits, atol=2e-5, rtol=1e-4)
    assert cache.get_seq_length() == 13
    for row in range(2):
        for x, y in zip(states(cache, row, 13), states(whole.past_key_values, row, 13), strict=True):
            torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_reset_cache_is_a_new_one(name, make_model, draw_tokens):
    """Zeros would not be: the importance before the first token is its prior."""
    model, tokens = make_model(name), draw_tokens(2, 9)
    first = model(tokens)
    first.past_key_values.reset()
    assert first.past_key_values.get_seq_length() == 0
    assert torch.equal(model(tokens, past_key_values=first.past_key_values).logits, first.logits)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_cache_follows_its_sequences(name, make_model, draw_tokens):
    """Reordered, repeated and selected, as beam search and others do."""
    model, tokens, following = make_model(name), draw_tokens(3, 8), draw_tokens(6, 1, seed=1)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    cache = model(tokens, attention_mask=mask).past_key_values
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([5, 1]))
    found = model(following[:2], past_key_values=cache).logits
    for row, source in enumerate((1, 2)):
        alone = model(tokens[source, mask[source].bool()][None]).past_key_values
        expected = model(following[row][None], past_key_values=alone).logits
        torch.testing.assert_close(found[row], expected[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_what_a_cache_cannot_do_is_told(make_model, draw_tokens):
    model, tokens = make_model("palimpsa_d"), draw_tokens(2, 5)
    with pytest.raises(ValueError, match="past_key_values: got DynamicCache with 0 of no layers, expected Dyn"):
        model(tokens, past_key_values=DynamicCache())
    cache = model(tokens).past_key_values
    with pytest.raises(ValueError, match="got a cache of 2 sequences, expected one of 1"):
        model(tokens[:1], past_key_values=cache)
    with pytest.raises(NotImplementedError, match="got -1 tokens, expected 0"):
        cache.crop(-1)
    with pytest.raises(ValueError, match=r"attention_mask: got \[2, 4\], expected \[2, 5\]"):
        model(tokens, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="input_ids, inputs_embeds: got both or none"):
        model()
