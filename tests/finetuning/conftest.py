"""Trained models of a second that are fine-tuned."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def trained(tiny_config, tmp_path) -> Callable[..., Path]:
    """The directory of a finished run of 19 steps: `trained("mamba2", "seed=2")`."""

    def train(model: str, *overrides: str) -> Path:
        from palimpsa.training.run import run

        config = tiny_config(f"model={model}", f"results_dir={tmp_path}/trained", "trainer.keep_final=true", *overrides)
        run(config)
        return Path(config.run_dir)

    return train


@pytest.fixture
def mamba2(tmp_path) -> Path:
    """A tiny Mamba-2 as transformers writes one, of random weights; its step sizes have a lower limit alone."""
    import torch
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "num_heads": 2, "head_dim": 16, "n_groups": 1}
    limit = (0.001, float("inf"))
    Mamba2ForCausalLM(Mamba2Config(vocab_size=32, time_step_limit=limit, **sizes)).save_pretrained(tmp_path / "mamba2")
    return tmp_path / "mamba2"
