"""Tiny models of every mixer, as transformers has them."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from palimpsa.config.compose import compose_config
from palimpsa.config.schema import typed
from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM

SIZES = ("scale.d_model=32", "scale.num_layers=2", "scale.num_heads=2", "scale.head_k_dim=8", "scale.head_v_dim=8")
VOCABULARY = 41


@functools.cache
def _config(name: str) -> dict:
    return dataclasses.asdict(typed(compose_config([f"model={name}", *SIZES, f"task.vocab_size={VOCABULARY}"])).model)


@torch.no_grad()
def _make(name: str, **changes) -> PalimpsaForCausalLM:
    config = _config(name)
    keys = {key: value for key, value in changes.items() if key in config}
    mixer = {**config["mixer"], **changes.pop("mixer", {})}
    keys.pop("mixer", None)
    more = {key: value for key, value in changes.items() if key not in config}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = PalimpsaForCausalLM(PalimpsaConfig.of_model({**config, **keys, "mixer": mixer}, **more))
    # Also what starts at zero, a convolution's bias say, and wide enough that tokens differ in probability.
    generator = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def make_model():
    """A model of two layers in evaluation mode: `make_model("palimpsa_d", mixer={"plasticity": "scalar"})`."""
    return _make


@pytest.fixture(scope="session")
def draw_tokens():
    """Tokens [B, T] of the vocabulary: `draw_tokens(2, 11, seed=3)`."""

    def draw(B: int, T: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(VOCABULARY, (B, T), generator=torch.Generator().manual_seed(seed))

    return draw
