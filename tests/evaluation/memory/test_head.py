"""The numbers of a head, against what they mean."""

import math
from dataclasses import replace

import pytest
import torch


# Late: the tests of the kernels choose Triton's interpreter first.
@pytest.fixture
def head():
    from palimpsa.evaluation.memory import head

    return head


@pytest.fixture
def path():
    """Of a memory of 30 tokens that forgets, with two precisions a head."""
    from palimpsa.evaluation.memory.attribution import follow_head
    from palimpsa.mixers.linear_memory import LinearMemory

    generator = torch.Generator().manual_seed(0)
    q, k, v, beta = (torch.randn(1, 30, 1, size, generator=generator) for size in (3, 3, 4, 2))
    log_decay = -torch.rand(1, 30, 1, generator=generator)
    return follow_head(LinearMemory(q, k, v, log_decay, 1.0, beta.abs(), torch.ones(1)), 0)


def test_consolidation_is_a_share_of_the_importance_that_tokens_left(head, path):
    """What all tokens left is the importance at the end without the prior, which a token does not change."""
    shares = head.consolidation(path, True)
    assert shares.sum().item() == pytest.approx(1)
    left = (path.importance[-1] - 1).sum().item()
    last = path.written[-1].sum().item()
    assert shares[-1].item() == pytest.approx(last / left)
    assert shares[0] < shares[-1]


def test_without_importances_what_was_written_counts(head, path):
    shares = head.consolidation(path, False)
    sizes = path.decay[-1, :, 0] * path.k.norm(dim=1) * path.v.norm(dim=1)
    torch.testing.assert_close(shares, sizes / sizes.sum())


def test_where_nothing_is_left_no_token_has_a_share(head, path):
    nothing = replace(path, written=torch.zeros_like(path.written))
    assert (head.consolidation(nothing, True) == 0).all()


def test_recall_is_averaged_over_what_is_of_the_same_age_by_its_size(head, path):
    """A token that writes nothing counts for nothing."""
    own, sizes = path.own_recall(), path.k.norm(dim=1) * path.v.norm(dim=1)
    by_age = head.recall_by_age(path)
    assert by_age[29].item() == pytest.approx(own[29, 0].item())
    assert by_age[28].item() == pytest.approx(
        ((own[28, 0] * sizes[0] + own[29, 1] * sizes[1]) / sizes[:2].sum()).item()
    )
    k = path.k.clone()
    k[1] = 0
    without = replace(path, k=k)
    assert head.recall_by_age(without)[28].item() == pytest.approx(without.own_recall()[28, 0].item())


@pytest.mark.parametrize(
    ("by_age", "age"),
    [([0.9, 0.8, 0.4, 0.9], 1), ([-0.1, 0.9], None), ([0.9, math.nan, 0.7], 0), ([0.5], 0), ([0.2, 0.1, 0.1], 2)],
    ids=["falls", "never", "unknown", "one", "just"],
)
def test_the_age_is_the_last_before_recall_first_falls_below_half(head, by_age, age):
    assert head.recalled_age(torch.tensor(by_age)) == age


def test_long_sequences_are_put_together_by_the_rules(head):
    """200 tokens in 80 columns; a row of attributions still adds up to 1."""
    from palimpsa.evaluation.memory.attribution import follow_head
    from palimpsa.mixers.linear_memory import LinearMemory

    generator = torch.Generator().manual_seed(0)
    T = 200
    q, k, v, beta = (torch.randn(1, T, 1, size, generator=generator) for size in (6, 6, 8, 8))
    memory = LinearMemory(q, k, v, torch.full((1, T, 1), -0.01), 1.0, beta.abs(), torch.ones(1))
    path = follow_head(memory, 0)
    details = head.head_details(path, memory.log_decay[0, :, 0], True)
    assert [len(row) for row in details["attribution"]] == [*range(1, 81)]
    for row in details["attribution"]:
        assert sum(row) == pytest.approx(1, abs=0.02)
    assert (len(details["importance"]), len(details["importance"][0])) == (32, 80)
    at_the_end = [row[-1] for row in details["importance"]]
    assert at_the_end == sorted(at_the_end, reverse=True)
    assert details["window"] == [pytest.approx(1 / -math.expm1(-0.01), rel=0.01)] * 80
    assert len(details["consolidation"]) == len(details["largest"]) == T
    assert all(s <= t for t, largest in enumerate(details["largest"]) for s, _ in largest)
