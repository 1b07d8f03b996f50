"""Benchmarks of pretraining of a few seconds on the CPU."""

import pytest

TINY = (
    *("benchmark=pretraining", "scale=laptop", "trainer=cpu", "models=[lm/palimpsa_d_tiny]"),
    *("context=32", "tokens_per_step=128", "num_warmup_steps=4", "num_steps=4", "log_every=2"),
)


@pytest.fixture
def tiny_pretraining(tmp_path):
    """The command line."""
    return [*TINY, f"results_dir={tmp_path}"]


@pytest.fixture
def plan(tiny_pretraining):
    """The runs of a command line: `plan("accumulate=2")`."""
    from palimpsa.benchmark.config import load
    from palimpsa.benchmark.pretraining.plan import plan_pretraining

    return lambda *overrides: plan_pretraining(load([*tiny_pretraining, *overrides]))
