"""The models next to the recurrence, as recurrences: against fla's formulas, in two halves, with bad arguments."""

# B batch, T time, H heads, K key dim, V value dim
import importlib.util
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from palimpsa.theory.special_cases import Gaussian, delta_rule, gated_delta_rule, longhorn, mamba2, mesanet

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


MODELS = {
    mamba2: ("g",),
    delta_rule: ("beta",),
    gated_delta_rule: ("beta", "g"),
    longhorn: ("beta_rows",),
    mesanet: ("beta", "g", "prior"),
}
every_model = pytest.mark.parametrize(("model", "names"), MODELS.items(), ids=[model.__name__ for model in MODELS])


@every_model
def test_two_halves_are_the_whole(make_sequence, model, names):
    x = make_sequence()

    def part(tokens):
        return [getattr(x, n) if n == "prior" else getattr(x, n)[:, tokens] for n in ("q", "k", "v", *names)]

    o, state = model(*part(slice(None)))
    first, middle = model(*part(slice(5)))
    second, last = model(*part(slice(5, None)), initial_state=middle)
    empty, unchanged = model(*part(slice(0)), initial_state=middle)
    close(torch.cat([first, second], 1), o)
    torch.testing.assert_close(last, state)
    torch.testing.assert_close(unchanged, middle)
    assert empty.shape == (2, 0, 2, 3)
    assert o.dtype == torch.float64


@pytest.fixture(scope="module")
def fla_naive():
    """fla's formulas, each from its file alone: importing fla takes many seconds without a GPU."""
    (package,) = importlib.util.find_spec("fla").submodule_search_locations

    def load(name):
        spec = importlib.util.spec_from_file_location(f"naive_{name}", Path(package) / "ops" / name / "naive.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("model", [mamba2, delta_rule, gated_delta_rule, mesanet], ids=lambda model: model.__name__)
def test_the_models_are_those_of_flash_linear_attention(make_sequence, fla_naive, model):
    # fla computes in float32, weighs the values by beta itself, and its MesaNet has K = V and no scale.
    x = make_sequence(K=4, V=4)
    if model is mamba2:
        found = mamba2(x.q, x.k, x.v, x.g)
        expected = fla_naive("simple_gla").naive_recurrent_simple_gla(x.q, x.k, x.v, x.g)
    elif model is delta_rule:
        found = delta_rule(x.q, x.k, x.v, x.beta)
        o, state = fla_naive("delta_rule").delta_rule_recurrence(
            *(y.transpose(1, 2) for y in (x.q, x.k, x.target, x.beta))
        )
        expected = o.transpose(1, 2), state
    elif model is gated_delta_rule:
        found = gated_delta_rule(x.q, x.k, x.v, x.beta, x.g)
        run = fla_naive("gated_delta_rule").naive_recurrent_gated_delta_rule
        expected = run(x.q, x.k, x.target, x.beta, x.g, output_final_state=True)
    else:
        o, (mean, precision) = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior, scale=1.0)
        regularizer = x.prior[:, None, None] * torch.eye(4, dtype=torch.float64)
        found = o, precision - regularizer, precision @ mean
        lamb = x.prior[:, None].expand(2, 4)
        expected = fla_naive("mesa_net").naive_mesa_net_exact(x.q, x.k, x.target, x.g, lamb, x.beta)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs.double(), rtol=1e-5, atol=1e-5)
        # A decay or a precision that is left out would show.
        assert mine.abs().max() > 0.1
    changed = {mamba2: "g", delta_rule: "beta", gated_delta_rule: "g", mesanet: "beta"}[model]
    setattr(x, changed, torch.zeros_like(x.g))
    wrong = model(*(getattr(x, name) for name in ("q", "k", "v", *MODELS[model])))[0]
    factor = 2 if model is mesanet else 1
    assert (factor * wrong - expected[0].double()).abs().max() > 0.1


@every_model
def test_a_bad_argument_of_a_model_is_named(make_sequence, model, names):
    x = make_sequence()
    good = {name: getattr(x, name) for name in ("q", "k", "v", *names)}

    def refused(match, **changed):
        with pytest.raises(ValueError, match=match):
            model(*(good | changed).values())

    refused(r"q has shape .* \[B, T, H, K\]", q=x.q[0])
    refused(r"v has shape .* \[B, T, H, V\]", v=x.v[0])
    refused(r"k has shape .* = \(2, 14, 2, 4\)", k=x.k[..., :3])
    refused("v has shape", v=x.v[:, :3])
    for name in ("beta", "beta_rows"):
        if name in good:
            refused("beta has shape", **{name: good[name][:, 1:]})
            refused("beta must be >= 0", **{name: -good[name]})
    if "g" in good:
        refused("g has shape", g=x.g[..., None])
        refused("g must be <= 0", g=-x.g)
        refused("g must be <= 0 .* got nan", g=x.g * math.nan)
    if "prior" in good:
        refused(r"importance_prior has shape .* \[H\]", prior=x.prior[:1])
        refused("importance_prior must be > 0, got 0", prior=0 * x.prior)
        long = torch.ones(1, 1, 1, 257)
        with pytest.raises(ValueError, match="K = 257, expected K <= 256"):
            mesanet(long, long, long, long[..., 0], -long[..., 0], torch.ones(1))
        with pytest.raises(ValueError, match=r"initial_state\.precision has shape"):
            mesanet(*good.values(), initial_state=Gaussian(torch.zeros(2, 2, 4, 3), torch.zeros(2, 2, 4, 3)))
    else:
        with pytest.raises(ValueError, match="initial_state has shape"):
            model(*good.values(), initial_state=torch.zeros(2, 2, 3, 4))


def test_the_delta_rule_is_the_gated_one_without_forgetting(make_sequence):
    x = make_sequence()
    o, state = gated_delta_rule(x.q, x.k, x.v, x.beta, torch.zeros_like(x.g))
    found, found_state = delta_rule(x.q, x.k, x.v, x.beta)
    close(found, o)
    close(found_state, state)
