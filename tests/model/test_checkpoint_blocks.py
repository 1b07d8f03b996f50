"""Blocks that are computed again in the backward pass: the same numbers, and less kept for it."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from palimpsa.mixers import Attention, GatedDeltaNet, PalimpsaD, PalimpsaM
from palimpsa.model.language_model import LanguageModel

MIXERS = (PalimpsaD, PalimpsaM, Attention, GatedDeltaNet)
NUM_LAYERS = 3
TOKENS = torch.randint(0, 50, (1, 48), generator=torch.Generator().manual_seed(1))
PACKED = torch.tensor([0, 5, 6, 30, 48])


def make(mixer=PalimpsaD, num_layers=NUM_LAYERS) -> LanguageModel:
    return LanguageModel(
        50,
        16,
        num_layers,
        lambda d_model: mixer(d_model, 2, 8, 8),
        channel_mixer="swiglu",
        channel_width=24,
        generator=torch.Generator().manual_seed(0),
    )


def loss_and_gradients(model, cu_seqlens=None):
    model.zero_grad()
    loss = model(TOKENS, cu_seqlens=cu_seqlens).float().logsumexp(-1).square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_the_same_bits(model, **options):
    expected = loss_and_gradients(model, **options)
    model.checkpoint_blocks = True
    found = loss_and_gradients(model, **options)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def count_calls(model):
    """A list that grows by the number of each block that computes."""
    calls = []
    for i, block in enumerate(model.blocks):
        block.mixer.register_forward_hook(lambda *_, i=i: calls.append(i))
    return calls


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("cu_seqlens", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32-true", "bf16-mixed"])
def test_loss_and_gradients_are_the_same_to_the_bit(mixer, cu_seqlens, dtype):
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert_the_same_bits(make(mixer), cu_seqlens=cu_seqlens)


def test_blocks_are_computed_again_from_the_last_to_the_first():
    model = make()
    calls = count_calls(model)
    loss_and_gradients(model)
    assert calls == [0, 1, 2]
    calls.clear()
    model.checkpoint_blocks = True
    loss_and_gradients(model)
    assert calls == [0, 1, 2, 2, 1, 0]


def bytes_kept(model) -> int:
    """Of tensors that a forward pass keeps for the backward pass, each once, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            # The tensor too: what is freed meanwhile would lend its place to another.
            kept[storage.data_ptr()] = storage.nbytes(), x
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        model(TOKENS).sum().backward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("mixer", MIXERS)
def test_of_every_block_its_input_alone_is_kept(mixer):
    growth = {}
    for checkpointed in (False, True):
        kept = []
        for num_layers in (NUM_LAYERS, NUM_LAYERS + 1):
            model = make(mixer, num_layers=num_layers)
            model.checkpoint_blocks = checkpointed
            kept.append(bytes_kept(model))
        growth[checkpointed] = kept[1] - kept[0]
    # fp32, of width 16.
    assert growth[True] == 4 * TOKENS.numel() * 16
    assert growth[False] > 10 * growth[True]


def test_what_reads_and_what_decodes_computes_nothing_twice():
    model = make()
    model.checkpoint_blocks = True
    calls = count_calls(model)
    with torch.no_grad():
        model(TOKENS)
    assert calls == [0, 1, 2]
    calls.clear()
    caches = model.new_caches(1)
    first, second = (model(part, caches=caches) for part in TOKENS.split(24, dim=1))
    torch.testing.assert_close(torch.cat([first, second], 1), model(TOKENS))
    (first.sum() + second.sum()).backward()
    assert calls[:6] == [0, 1, 2] * 2
    assert len(calls) == 9


def test_compiled_blocks_are_computed_again_by_the_same_code():
    """With autograd's part of the compiler, which cuts a block into what is kept and what is not."""
    model = make()
    for block in model.blocks:
        block.compile(backend="aot_eager", dynamic=False)
    assert_the_same_bits(model)
    assert_the_same_bits(model, cu_seqlens=PACKED)
