"""The operators that are timed: their inputs, and the float64 formulas that results are held to."""

import importlib.util
from pathlib import Path

import pytest
import torch

from palimpsa.analysis.collect.benchmark_columns import OPERATORS
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
