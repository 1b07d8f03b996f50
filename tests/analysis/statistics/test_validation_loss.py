"""The best learning rate by validation loss: the lowest mean on the seeds that all rates have."""

import math

from palimpsa.analysis.statistics.validation_loss import best_rate, is_measured_by_loss, losses_by_rate


def result(lr: float, seed: int, loss: float | None, label: str = "Palimpsa-D") -> dict:
    """Of a run of two stages; without a loss it diverged in the second."""
    stages = [{"validation_loss": 9.0}, *([] if loss is None else [{"validation_loss": loss}])]
    status = "diverged" if loss is None else "finished"
    return {"run": {"label": label, "lr": lr, "seed": seed}, "status": status, "stages": stages}


def test_rates_are_compared_on_the_seeds_that_all_have():
    results = [result(1e-3, 1, 3.0), result(1e-3, 2, 1.0), result(3e-3, 1, 2.5), result(1e-2, 1, None)]
    small, middle, large = losses_by_rate(results)["Palimpsa-D"]
    assert (small.lr, small.loss, small.num_seeds, small.num_finished, small.num_runs) == (1e-3, 3.0, 1, 2, 2)
    assert (large.loss, large.num_finished, large.num_runs) == (math.inf, 0, 1)
    assert best_rate([small, middle, large]) is middle
    assert best_rate([large]) is None


def test_without_a_common_seed_each_rate_has_its_own():
    rates = losses_by_rate([result(1e-3, 1, 2.0), result(3e-3, 2, 2.0), result(3e-3, 3, 4.0)])["Palimpsa-D"]
    assert [(rate.loss, rate.num_seeds) for rate in rates] == [(2.0, 1), (3.0, 2)]


def test_of_equal_losses_the_smaller_rate_is_best():
    rates = losses_by_rate([result(3e-3, 1, 2.0), result(1e-3, 1, 2.0)])["Palimpsa-D"]
    best = best_rate(rates)
    assert best is not None
    assert best.lr == 1e-3


def test_models_are_compared_apart():
    by_model = losses_by_rate([result(1e-3, 1, 2.0), result(1e-3, 1, 3.0, "GLA")])
    assert {label: rates[0].loss for label, rates in by_model.items()} == {"Palimpsa-D": 2.0, "GLA": 3.0}


def test_what_has_an_accuracy_is_not_measured_by_its_loss():
    assert is_measured_by_loss([result(1e-3, 1, 2.0)])
    with_accuracy = {"stages": [{"validation_accuracy": 0.5, "validation_loss": 2.0}]}
    assert not is_measured_by_loss([with_accuracy])
    assert not is_measured_by_loss([{"stages": []}])
