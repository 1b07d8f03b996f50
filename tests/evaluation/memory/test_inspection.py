"""What an inspection says of models of every kind, and which it refuses."""

import pytest
import torch

from palimpsa.config.errors import ConfigError

TOKENS = torch.arange(12) % 5


def look_into(source, **options):
    """Late, as all that imports Triton: the tests of the kernels choose its interpreter first."""
    from palimpsa.evaluation.memory.inspection import inspect_memory
    from palimpsa.evaluation.memory.source import Sequence

    return inspect_memory(source, Sequence(TOKENS, [str(one) for one in TOKENS.tolist()], {"kind": "text"}), **options)


@pytest.mark.parametrize(
    ("mixer", "options", "has_importance"),
    [
        ("PalimpsaD", {}, True),
        ("PalimpsaM", {"plasticity": "scalar"}, True),
        ("PalimpsaD", {"metaplastic": False}, False),
        ("PalimpsaM", {"metaplastic": False}, False),
        ("SimpleGLA", {}, False),
        ("GLA", {}, False),
    ],
)
def test_every_linear_memory_is_looked_into(make_source, mixer, options, has_importance):
    content = look_into(make_source(mixer, **options))
    assert content["attribution_error"] < 1e-5
    assert content["model"]["has_importance"] == has_importance
    for head in content["heads"]:
        assert (head["details"]["importance"] is not None) == has_importance
        assert (head["metaplasticity"] is not None) == has_importance
        assert sum(head["details"]["consolidation"]) == pytest.approx(1, abs=0.01)
        assert all(sum(row) == pytest.approx(1, abs=0.01) for row in head["details"]["attribution"])


@pytest.mark.parametrize(
    ("mixer", "why"),
    [
        ("DeltaNet", "takes off what it recalls when it writes"),
        ("GatedDeltaNet", "takes off what it recalls when it writes"),
        ("Attention", "has no memory of a fixed size to look into"),
    ],
)
def test_another_kind_of_memory_is_refused_by_name(make_source, mixer, why):
    with pytest.raises(ConfigError, match=f"^CHECKPOINT: got a model of {mixer}, which {why}.*; expected one of Palim"):
        look_into(make_source(mixer))


def test_details_are_of_the_heads_that_were_asked_for_and_of_eight_at_most(make_source):
    content = look_into(make_source("PalimpsaD", num_heads=4, num_layers=3))
    assert len(content["heads"]) == 12
    assert sum("details" in head for head in content["heads"]) == 8
    asked = look_into(make_source("PalimpsaD", num_heads=4, num_layers=3), layer=2, head=1)
    assert [(h["layer"], h["head"]) for h in asked["heads"] if "details" in h] == [(2, 1)]
    assert asked["shown"] == {"layer": 2, "head": 1}


def test_the_tokens_that_can_store_a_pair_see_both_its_parts_before_its_query(make_source):
    from palimpsa.evaluation.memory.inspection import _writers
    from palimpsa.tasks.task import Bindings

    tokens = torch.zeros(1, 8, dtype=torch.int64)
    bindings = Bindings(tokens, torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[6, 4]]), torch.zeros(1, 2))
    # Four taps: what is stored at 0 and 1 is seen together from 1 to 3; what is stored at 2 and 3 is asked for at 4.
    writers = _writers(make_source("PalimpsaD").model, bindings)
    assert [row.nonzero()[:, 0].tolist() for row in writers[0]] == [[1, 2, 3], [3]]


def test_a_query_reads_its_own_pair_where_the_largest_share_is(make_source, monkeypatch):
    """Two queries, of which one reads the token after its pair's value, and the other itself."""
    from palimpsa.evaluation.memory import inspection
    from palimpsa.evaluation.memory.attribution import HeadPath
    from palimpsa.tasks.task import Bindings

    tokens = torch.zeros(1, 8, dtype=torch.int64)
    bindings = Bindings(tokens, torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[4, 6]]), torch.zeros(1, 2))
    read = torch.zeros(2, 8, dtype=torch.float64)
    read[0, 2], read[1, 6] = 1, 1
    monkeypatch.setattr(HeadPath, "shares", lambda path, times: read)
    found = inspection.own_reads(make_source("PalimpsaD"), bindings)
    for is_own, offset in found.values():
        assert is_own.tolist() == [[True, False]]
        assert offset.tolist() == [[2, -1]]
