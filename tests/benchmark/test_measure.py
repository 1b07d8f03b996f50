"""Errors against float64, and the clock."""

import math
import time

import pytest
import torch

from palimpsa.analysis.collect.benchmark_columns import NEED_CUDA, OPERATORS
from palimpsa.benchmark import measure
from palimpsa.benchmark.base import WrongResultError
from palimpsa.benchmark.operators import REGISTRY


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in NEED_CUDA])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)], ids=str)
def test_errors_are_those_of_the_dtype(name, dtype, tolerance):
    errors = measure.check_operator(REGISTRY[name], 4, 6, dtype, torch.Generator().manual_seed(1))
    assert 0 < errors.forward < tolerance
    assert errors.backward is not None
    assert 0 < errors.backward < tolerance


def test_an_error_that_is_no_number_is_refused():
    for errors in (measure.Errors(math.nan), measure.Errors(0.0, math.nan)):
        with pytest.raises(WrongResultError):
            errors.check("it", 1.0)
    assert math.isnan(measure._worst([0.0, math.nan, 1.0]))


def test_the_error_of_nothing_expected_is_nothing_only_for_nothing():
    zero = torch.zeros(3, dtype=torch.float64)
    assert measure.relative_error(zero, zero) == 0
    assert measure.relative_error(None, zero) == 0
    assert measure.relative_error(zero + 1, zero) > 1
    assert measure.relative_error(None, zero + 1) == 1


def test_the_limit_is_one_reciprocal_an_element_of_all_multiprocessors():
    assert measure.limit_ps_per_element(132, 1.75e9) == pytest.approx(1e12 / (132 * 16 * 1.75e9))
    assert measure.limit_ps_per_element(66) == pytest.approx(2 * measure.limit_ps_per_element(132))


def test_the_clock_drops_gradients_before_each_call():
    leaf = torch.ones(1, requires_grad=True)
    seen = []

    def call() -> None:
        seen.append(leaf.grad)
        leaf.sum().backward()

    assert measure.Clock("cpu", 0.01, 1.0).median_ms(call, [leaf]) > 0
    assert len(seen) >= 2
    assert set(seen) == {None}


def test_a_cpu_has_no_time_of_a_device_alone():
    assert measure.Clock("cpu", 0.01, 1.0).device_ms(lambda: None) is None


@pytest.mark.gpu
def test_the_time_of_the_device_alone_has_nothing_of_the_host():
    clock, x = measure.Clock("cuda", 1.0, 10.0), torch.ones(1, device="cuda")

    def call() -> None:
        time.sleep(2e-3)
        x.add_(1)

    clock.median_ms(call)
    alone = clock.device_ms(call)
    assert alone is not None
    assert alone < 0.1
    with pytest.raises(RuntimeError, match="a call waits for it"):
        clock.device_ms(torch.cuda.synchronize)
