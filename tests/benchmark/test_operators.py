"""The operators that are timed: their inputs, and the float64 formulas that results are held to."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.analysis.collect.benchmark_columns import OPERATORS, OPERATORS_OF_CASE
from palimpsa.analysis.statistics.throughput_limits import with_limits
from palimpsa.benchmark import measure
from palimpsa.benchmark.operators import REGISTRY, Shape

SHAPE = Shape("tiny", 2, 23, 2, 4, 6)


def inputs(name: str, dtype: torch.dtype = torch.float32):
    return REGISTRY[name].inputs(SHAPE, dtype, torch.Generator().manual_seed(0))


def naive_formula(name: str):
    """fla's formula token by token, from its file alone: importing fla takes ten seconds without a GPU."""
    folder = {"gated_deltanet": "gated_delta_rule"}.get(name, name)
    (package,) = importlib.util.find_spec("fla").submodule_search_locations
    spec = importlib.util.spec_from_file_location("naive", Path(package) / "ops" / folder / "naive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"naive_recurrent_{folder}")


def test_every_operator_of_the_files_is_there():
    assert list(REGISTRY) == list(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_fresh_inputs_are_leaves_of_the_dtype_asked_for(name):
    x = inputs(name, torch.bfloat16)
    assert all(value.is_leaf and value.requires_grad for value in x.values())
    for key, value in x.items():
        assert value.dtype == (torch.float32 if key in ("g", "importance_prior") else torch.bfloat16)
        assert value.isfinite().all()
    assert "g" not in x or (x["g"] <= 0).all()


@pytest.mark.parametrize(
    ("name", "num_importances"), [("palimpsa", 6), ("palimpsa_grouped", 3), ("palimpsa_scalar", 1)]
)
def test_an_importance_serves_as_many_rows_as_a_precision(name, num_importances):
    x = inputs(name)
    assert x["beta"].shape == (2, 23, 2, num_importances)
    _, importance = REGISTRY[name].start(x)
    assert importance.shape == (2, 2, 4, num_importances)
    assert REGISTRY[name].token(x, 3)["beta"].shape == (2, 2, num_importances)


@pytest.mark.parametrize("name", OPERATORS_OF_CASE["decode"])
def test_the_size_of_the_state_is_that_of_what_decoding_starts_from(name):
    state = REGISTRY[name].start(inputs(name))
    assert REGISTRY[name].state_size(SHAPE) == sum(x.numel() for x in state)
    assert {x.dtype for x in state} == {torch.float32}


@pytest.mark.parametrize("name", ["palimpsa", "palimpsa_scalar"])
def test_the_limits_count_the_bytes_of_the_tensors(name):
    operator, x = REGISTRY[name], inputs(name, torch.bfloat16)
    o, state = operator.prefill(x)
    row = asdict(SHAPE) | {"operator": name, "case": "decode", "dtype": "bfloat16"}
    copy = pd.DataFrame([{"case": "copy", "bandwidth_gb_s": 1.0, "limit_ps_per_element": None}])
    (limit,) = with_limits(pd.DataFrame([row]), copy)["limit"]
    state_bytes = sum(tensor.nbytes for tensor in state)
    # Thousand tokens a second: a token of each sequence reads and writes all of the state.
    assert limit == pytest.approx(1e6 * SHAPE.B / (2 * state_bytes))
    if name == "palimpsa_scalar":
        (limit,) = with_limits(pd.DataFrame([row | {"case": "prefill"}]), copy)["limit"]
        moved = sum(x[key].nbytes for key in ("q", "k", "v", "beta", "g")) + o.nbytes + state_bytes
        assert limit == pytest.approx(1e6 * SHAPE.B * SHAPE.T / moved)


@pytest.mark.parametrize("name", ["simple_gla", "gla", "gated_deltanet"])
def test_the_formula_of_linear_attention_is_that_of_fla(name):
    x = {key: value.detach() for key, value in inputs(name).items()}
    order, arguments = {
        "simple_gla": ("qkvg", {}),
        "gla": ("qkvg", {"output_final_state": True}),
        "gated_deltanet": (("q", "k", "v", "beta", "g"), {"output_final_state": True}),
    }[name]
    o, state = naive_formula(name)(*(x[key] for key in order), **arguments)
    expected, (expected_state,) = REGISTRY[name].reference({key: value.double() for key, value in x.items()})
    assert measure.relative_error(o, expected) < 1e-6
    assert measure.relative_error(state, expected_state) < 1e-6


def test_keys_of_the_gated_delta_rule_have_length_one():
    torch.testing.assert_close(inputs("gated_deltanet")["k"].norm(dim=-1), torch.ones(2, 23, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_right_on_a_gpu(name):
    generator = torch.Generator("cuda").manual_seed(0)
    operator = REGISTRY[name]
    shape = operator.shape(Shape("check", 1, 1, 1, 48, 96))
    errors = measure.check_operator(operator, shape.K, shape.V, torch.bfloat16, generator)
    assert errors.forward < 1e-2
    assert errors.backward is not None
    assert errors.backward < 2e-2
