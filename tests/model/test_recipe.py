"""How language models start and are optimised: our recipe, and the authors'."""

import math

import pytest
import torch
import torch.nn.functional as F

from palimpsa.config.compose import compose_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import plain, typed
from palimpsa.mixers.layers import Decay
from palimpsa.model.build import build_model, check_model
from palimpsa.model.table import SIZES
from palimpsa.runs.identity import config_hash
from palimpsa.training.optimizer import make_optimizer

# Of 170M models, at a size that a CPU initialises in no time.
SMALL = ("model.d_model=64", "model.num_layers=2", "model.vocab_size=96", "model.mixer.num_heads=64")
RECURRENT = ["palimpsa_d", "palimpsa_m", "mamba2", "gated_deltanet", "palimpsa_d_nometa"]


def built(model, *overrides, seed=1):
    config = compose_config(
        [f"model=lm/{model}_170m", *SMALL, "model.mixer.head_k_dim=4", "model.mixer.head_v_dim=4", *overrides]
    )
    return config, build_model(config.model, seed)


def decays(model) -> list[Decay]:
    return [module for module in model.modules() if isinstance(module, Decay)]


@pytest.mark.parametrize("name", RECURRENT)
def test_the_authors_draw_every_heads_decay(name):
    _, ours = built(name)
    _, model = built(name, "recipe=language_authors")
    _, again = built(name, "recipe=language_authors")
    _, other = built(name, "recipe=language_authors", seed=2)
    for own, same, another, spread in zip(decays(model), decays(again), decays(other), decays(ours), strict=True):
        rate, step_size = own.log_rate.exp(), F.softplus(own.bias)
        # U(0, 16) of 64 heads: its mean is 8 and has a standard error of 0.6.
        assert 0 < rate.min() < rate.max() <= 16
        assert abs(rate.mean() - 8) < 2.5
        # Log-uniform in 0.001..0.1.
        assert 0.000_999 < step_size.min() < step_size.max() < 0.100_1
        assert abs(step_size.log().mean() - math.log(0.01)) < 0.7
        assert torch.equal(own.log_rate, same.log_rate)
        assert not torch.equal(own.log_rate, another.log_rate)
        # Ours is the same ramp in every layer.
        assert torch.equal(spread.log_rate, decays(ours)[0].log_rate)
    layers = decays(model)
    assert not torch.equal(layers[0].bias, layers[1].bias)


def test_the_authors_start_from_the_plasticity_of_softplus_1():
    _, model = built("palimpsa_d", "recipe=language_authors")
    _, ours = built("palimpsa_d")
    for mixer, own in zip(model.mixers(), ours.mixers(), strict=True):
        assert torch.equal(mixer.plasticity.scale, torch.ones(64))
        plasticity = F.softplus(own.plasticity.scale)
        assert 0.099 < plasticity.min() < plasticity.max() < 1.001


@pytest.mark.parametrize(("recipe", "eps", "decay_of_vectors"), [("ours", 1e-8, 0.0), ("language_authors", 1e-15, 0.1)])
def test_what_decays_and_epsilon(recipe, eps, decay_of_vectors):
    config, model = built("palimpsa_d", f"recipe={recipe}")
    optimizer = make_optimizer(model, config.optimizer, torch.device("cpu"))
    assert {group["eps"] for group in optimizer.param_groups} == {eps}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in model.parameters() if p.ndim < 2} == {decay_of_vectors}
    assert {decay[id(p)] for p in model.parameters() if p.ndim >= 2} == {0.1}


def test_a_recipe_is_in_a_runs_identity_by_what_it_sets():
    hashes = [
        config_hash(plain(typed(compose_config(["model=lm/palimpsa_d_170m", *more]))))
        for more in ((), ("recipe=language_authors",), ("recipe.name=mine",))
    ]
    assert hashes[0] == hashes[2] != hashes[1]
    # MQAR's models start as they always did.
    ours, authors = (
        plain(typed(compose_config(["model=palimpsa_d", f"recipe={name}"])))["model"]
        for name in ("ours", "language_authors")
    )
    assert ours == authors


@pytest.mark.parametrize("size", SIZES)
def test_every_size_takes_a_recipe(size):
    for name in ("palimpsa_m", "gla", "transformer"):
        check_model(plain(typed(compose_config([f"model=lm/{name}_{size}", "recipe=language_authors"])))["model"])


def test_a_forgetting_that_a_mixer_does_not_know_is_refused():
    for model, known in (
        ("palimpsa_d", "very_small, small, normal, random"),
        ("gla", "very_small, small, normal here"),
    ):
        config = plain(typed(compose_config([f"model={model}", "model.mixer.forgetting=rare"])))["model"]
        with pytest.raises(ConfigError, match=rf"model\.mixer\.forgetting: got 'rare', expected one of {known}"):
            check_model(config)
