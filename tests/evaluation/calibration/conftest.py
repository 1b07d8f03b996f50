"""Trained models of a second."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def trained(tiny_config, tmp_path) -> Callable[..., Path]:
    """The directory of a finished run of 19 steps, with its last weights: `trained("palimpsa_m", "seed=2")`."""

    def train(model: str, *overrides: str) -> Path:
        from palimpsa.training.run import run

        config = tiny_config(f"model={model}", f"results_dir={tmp_path}", "trainer.keep_final=true", *overrides)
        run(config)
        return Path(config.run_dir)

    return train
