"""Documents that are packed into one row know nothing of each other, whatever the model mixes tokens with."""

# T tokens, V vocabulary

import pytest
import torch
import torch.nn.functional as F

from palimpsa.config.schema import typed
from palimpsa.model.build import build_model

MODELS = ("palimpsa_d", "palimpsa_m", "mamba2", "gla", "transformer")
each_model = pytest.mark.parametrize("name", MODELS)
# Longer than a chunk of the operators, one token, and shorter than the convolution.
BOUNDS = [0, 70, 71, 74, 110]
PIECES = [(0, 70), (70, 71), (71, 74), (74, 110)]


@pytest.fixture
def packed(name, compose_config):
    """A model of two layers, a row of four documents, and their boundaries."""
    sizes = ["scale.d_model=16", "scale.num_heads=2", "scale.head_k_dim=4", "scale.head_v_dim=4", "task.vocab_size=32"]
    model = build_model(typed(compose_config(f"model={name}", *sizes)).model, 1)
    tokens = torch.randint(32, (1, BOUNDS[-1]), generator=torch.Generator().manual_seed(0))
    return model, tokens, torch.tensor(BOUNDS)


# Property 6: through convolution, decay and memory.
@each_model
@torch.no_grad()
def test_another_last_token_of_one_document_leaves_the_others_logits_bit_equal(name, packed):
    model, tokens, cu_seqlens = packed
    before = model(tokens, cu_seqlens=cu_seqlens)
    for start, end in PIECES:
        changed = tokens.clone()
        changed[0, end - 1] = (changed[0, end - 1] + 1) % 32
        after = model(changed, cu_seqlens=cu_seqlens)
        is_other = torch.ones(BOUNDS[-1], dtype=torch.bool)
        is_other[end - 1] = False
        assert torch.equal(before[0, is_other], after[0, is_other])
        assert not torch.equal(before[0, end - 1], after[0, end - 1])
        # Nor does any token of it.
        changed[0, start:end] = (changed[0, start:end] + 1) % 32
        is_other[start:end] = False
        assert torch.equal(before[0, is_other], model(changed, cu_seqlens=cu_seqlens)[0, is_other])
    # Without boundaries it would.
    one_document = model(changed)
    assert not torch.equal(model(tokens)[0, 75:], one_document[0, 75:])


@each_model
def test_the_gradients_of_a_packed_row_are_the_sum_of_the_separate_ones(name, packed):
    model, tokens, cu_seqlens = packed
    model = model.double()

    def gradients(pieces, **packing):
        model.zero_grad()
        for start, end in pieces:
            row = tokens[:, start:end]
            logits = model(row, **packing)
            F.cross_entropy(logits[0], row[0].flip(0) if not packing else flipped, reduction="sum").backward()
        return {parameter_name: parameter.grad for parameter_name, parameter in model.named_parameters()}

    flipped = torch.cat([tokens[0, start:end].flip(0) for start, end in PIECES])
    separate = {key: value.clone() for key, value in gradients(PIECES).items()}
    together = gradients([(0, BOUNDS[-1])], cu_seqlens=cu_seqlens)
    for key, expected in separate.items():
        torch.testing.assert_close(together[key], expected, rtol=1e-6, atol=1e-9 + 1e-7 * expected.abs().max().item())


@each_model
def test_boundaries_in_several_rows_are_refused(name, packed):
    model, tokens, cu_seqlens = packed
    with pytest.raises(ValueError, match="cu_seqlens needs sequences packed along T in a batch of B = 1, got B = 2"):
        model(tokens.expand(2, -1), cu_seqlens=cu_seqlens)
