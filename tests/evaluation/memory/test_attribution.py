"""Attributions add up to what the operators return, in every form of the memory."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences

from dataclasses import replace

import pytest
import torch

from palimpsa.kernels import PalimpsaState, palimpsa
from palimpsa.kernels.fla.recurrences import gla, simple_gla
from palimpsa.mixers import GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaD, PalimpsaM, SimpleGLA
from palimpsa.mixers.linear_memory import LinearMemory

B, T, H, K, V = 2, 37, 3, 6, 8
FORMS = {"vector": V, "grouped": 2, "scalar": 1, "without": None}


# Late: the module imports nothing that trains, and the room's tests are collected before the kernels'.
def follow(*args, **options):
    from palimpsa.evaluation.memory.attribution import follow_head

    return follow_head(*args, **options)


def random_memory(
    groups: int | None, *, num_states: int = 0, batch: int = B, per_channel: bool = False
) -> LinearMemory:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    state = None
    if num_states:
        importance = normal(num_states, H, K, groups or V).abs() + 0.3
        state = PalimpsaState(normal(num_states, H, K, V), importance)
    return LinearMemory(
        *(normal(batch, T, H, size) for size in (K, K, V)),
        -normal(batch, T, H, *([K] if per_channel else [])).abs() / 5,
        scale=0.7,
        beta=None if groups is None else normal(batch, T, H, groups).abs(),
        importance_prior=torch.tensor([0.5, 1.0, 2.0]),
        state=state,
    )


def operator(memory: LinearMemory, cu_seqlens=None):
    return palimpsa(
        *memory[:3],
        memory.beta,
        memory.log_decay,
        memory.importance_prior,
        scale=memory.scale,
        initial_state=memory.state,
        output_variance=True,
        output_final_state=True,
        cu_seqlens=cu_seqlens,
    )


def sums(memory: LinearMemory, cu_seqlens=None) -> torch.Tensor:
    """[B, T, H, V]: attributions to written tokens, and to what was there before, added up."""
    rows = []
    for row in range(len(memory.q)):
        paths = [follow(memory, head, row, cu_seqlens) for head in range(H)]
        added = [[path.contributions(t).sum(0) + path.remainder(t) for path in paths] for t in range(T)]
        rows.append(torch.stack([torch.stack(heads) for heads in added]))
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_states", [0, B], ids=["empty", "continued"])
def test_attributions_add_up_to_the_operators_output(form, num_states):
    memory = random_memory(FORMS[form], num_states=num_states)
    expected = operator(memory)
    torch.testing.assert_close(sums(memory).float(), expected.o, rtol=0, atol=1e-5)
    path = follow(memory, 1, 0)
    torch.testing.assert_close(path.variance().float(), expected.variance[0, :, 1].mean(-1), rtol=1e-5, atol=1e-6)
    last = expected.final_state.importance[0, :, :][1]
    torch.testing.assert_close(path.importance[-1].expand(K, last.shape[-1]).float(), last, rtol=1e-5, atol=1e-6)
    has_earlier = any(path.remainder(t).abs().max() > 1e-3 for t in range(T))
    assert has_earlier == bool(num_states)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_states", [False, True], ids=["empty", "continued"])
def test_nothing_is_attributed_across_the_start_of_a_document(form, with_states):
    bounds = torch.tensor([0, 5, 5, 20, T])
    memory = random_memory(FORMS[form], batch=1, num_states=4 * with_states)
    torch.testing.assert_close(sums(memory, bounds).float(), operator(memory, bounds).o, rtol=0, atol=1e-5)
    path = follow(memory, 0, 0, bounds)
    for t in range(T):
        start = max(one for one in bounds.tolist() if one <= t)
        contributions = path.contributions(t)
        assert (contributions[:start] == 0).all()
        assert (contributions[t + 1 :] == 0).all()
        assert (contributions[start : t + 1] != 0).any()


@pytest.mark.parametrize("per_channel", [False, True], ids=["one_decay", "a_decay_a_channel"])
@pytest.mark.parametrize("continued", [False, True])
def test_attributions_of_memories_without_importance_add_up(per_channel, continued):
    memory = random_memory(None, per_channel=per_channel)
    memory = memory._replace(importance_prior=None, scale=K**-0.5)
    before = torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(1)) if continued else None
    if before is not None:
        memory = memory._replace(state=PalimpsaState(before, torch.ones(B, H, K, 1)))
    o, _ = (gla if per_channel else simple_gla)(*memory[:4], before, None)
    torch.testing.assert_close(sums(memory).float(), o, rtol=0, atol=1e-5)


def test_a_reset_forgets_all_that_came_before():
    memory = random_memory(V)
    log_decay = memory.log_decay.clone()
    log_decay[:, 10] = -torch.inf
    memory = memory._replace(log_decay=log_decay)
    torch.testing.assert_close(sums(memory).float(), operator(memory).o, rtol=0, atol=1e-5)
    assert (follow(memory, 0).contributions(30)[:10] == 0).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PalimpsaD, {}),
        (PalimpsaD, {"plasticity": "grouped", "num_precisions": 2}),
        (PalimpsaD, {"plasticity": "scalar"}),
        (PalimpsaD, {"metaplastic": False}),
        (PalimpsaM, {}),
        (PalimpsaM, {"metaplastic": False}),
        (SimpleGLA, {}),
        (GLA, {}),
    ],
    ids=lambda one: one.__name__ if isinstance(one, type) else "-".join(map(str, one.values())) or "default",
)
@torch.no_grad()
def test_what_a_mixer_hands_over_gives_its_own_output(kind, options):
    torch.manual_seed(0)
    mixer = kind(d_model=12, num_heads=H, head_k_dim=4, head_v_dim=V, **options)
    x = torch.randn(B, T, 12)
    memory = mixer.linear_memory(x)
    o = sums(memory).float()
    if isinstance(mixer, PalimpsaD | PalimpsaM):
        operands = mixer._operands(x, None, None)
        y = mixer._output(o + mixer.skip[:, None] * operands.value, operands.gate)
    else:
        y = mixer.o_proj(mixer._normalise(o, mixer._operands(x, None, None)[1]).flatten(-2))
    torch.testing.assert_close(y, mixer(x), rtol=0, atol=1e-5)
    assert memory.k.abs().max() > 0


@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet, Attention])
def test_a_memory_whose_entries_do_not_decay_by_themselves_hands_nothing_over(kind):
    assert kind(d_model=12, num_heads=H, head_k_dim=4, head_v_dim=V).linear_memory(torch.randn(B, T, 12)) is None


def test_the_shares_of_an_output_add_up_to_one():
    path = follow(random_memory(2), 0)
    shares = path.shares()
    torch.testing.assert_close(shares.sum(1), torch.ones(T, dtype=torch.float64))
    assert (shares.triu(1) == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_key_recalls_its_own_value_as_a_query_would(form):
    """The share is that of an output whose query is the key; all of it where nothing else was stored."""
    memory = random_memory(FORMS[form])
    path = follow(memory, 0)
    own = path.own_recall()
    assert own[0, 0].item() == pytest.approx(1)
    assert own.triu(1).isnan().sum() == T * (T - 1) / 2
    for t, s in ((20, 3), (36, 36), (36, 0)):
        asked = path.q.clone()
        asked[t] = path.k[s]
        assert own[t, s].item() == pytest.approx(replace(path, q=asked).shares([t])[0, s].item())


def test_nothing_is_recalled_across_the_start_of_a_document():
    path = follow(random_memory(V, batch=1), 0, 0, torch.tensor([0, 20, T]))
    assert (path.own_recall()[20:, :20] == 0).all()


def test_a_query_reads_the_token_that_stored_its_key():
    """Two orthogonal keys: the reader weighs the value of its own alone."""
    keys = torch.eye(2)[[0, 1, 0]].view(1, 3, 1, 2)
    memory = LinearMemory(
        keys, keys, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1), 1.0, torch.ones(1, 3, 1, 1), torch.ones(1)
    )
    # I = 2 for the second, and 3 for the first once it was written twice.
    torch.testing.assert_close(follow(memory, 0).weights(2)[:, 0].tolist(), [1 / 3, 0.0, 1 / 3])
    torch.testing.assert_close(follow(memory, 0).shares()[1].tolist(), [0.0, 1.0, 0.0])
