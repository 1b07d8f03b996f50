"""Every inspection can be drawn: of few tokens, of models without importances, of tokens that show nothing."""

import json

import pytest
import torch


@pytest.mark.parametrize("pieces", [["a"], ["a", ""], ["\n", " ", "\x00"], ["word"] * 130], ids=len)
@pytest.mark.parametrize(("mixer", "options"), [("PalimpsaD", {}), ("PalimpsaM", {"metaplastic": False}), ("GLA", {})])
def test_an_inspection_of_any_length_is_drawn(make_source, mixer, options, pieces, tmp_path):
    # Late: the tests of the kernels choose Triton's interpreter first.
    from palimpsa.evaluation.memory.command import write_views
    from palimpsa.evaluation.memory.inspection import inspect_memory
    from palimpsa.evaluation.memory.source import Sequence

    sequence = Sequence(torch.arange(len(pieces)) % 32, pieces, {"kind": "text", "file": "a.txt", "num_cut": 0})
    content = inspect_memory(make_source(mixer, **options), sequence)
    (tmp_path / "inspection.json").write_text(json.dumps(content))
    assert write_views(tmp_path) == ["inspection.png", "inspection.svg", "inspection.html"]
