"""What is trained at which rate: the parameters that conversion makes, the others, and what is frozen."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.config.errors import ConfigError
from palimpsa.model.build import build_model


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def run(config):
    from palimpsa.training.run import run as run_it

    return run_it(config)


def final_checkpoint(config) -> dict:
    return torch.load(Path(config.run_dir) / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize("model", ["palimpsa_d", "palimpsa_m_scalar", "ablation/palimpsa_d_constant_beta"])
def test_the_new_parameters_are_what_the_twin_without_metaplasticity_lacks(tiny_config, model):
    from palimpsa.training.optimizer import new_parameters

    twin = "mamba2" if "_m" in model else "palimpsa_d_nometa"
    own, other = (build_model(tiny_config(f"model={name}").model, 1) for name in (model, twin))
    assert set(new_parameters(own)) == set(dict(own.named_parameters())) - set(dict(other.named_parameters()))
    assert new_parameters(other) == {}


def test_new_parameters_have_their_own_rate_and_warm_up_and_curves_show_both(tiny_config):
    config = tiny_config(
        "optimizer.lr=1e-3", "optimizer.new_lr=1e-2", "optimizer.new_warmup_steps=10", "optimizer.warmup_steps=2",
        "trainer.keep_final=true", "trainer.log_every=1",
    )  # fmt: skip
    run(config)
    curves = pd.read_csv(Path(config.run_dir) / "history.csv").set_index("step")
    old, new = curves["learning_rate"].dropna(), curves["learning_rate_new"].dropna()
    assert old[1] == old[19] == pytest.approx(1e-3)
    assert new[4] == pytest.approx(5e-3)
    assert new[19] == pytest.approx(1e-2)
    (optimizer,) = final_checkpoint(config)["optimizer_states"]
    names = [group.get("new", False) for group in optimizer["param_groups"]]
    assert names == [False, False, True, True]
    # Every parameter is in one group.
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    assert len(numbers) == len(set(numbers)) == len(list(build_model(config.model, 1).parameters()))


def test_one_rate_for_both_is_the_run_without_the_key(tiny_config):
    both, plain = tiny_config("optimizer.new_lr=4.64e-3", "variant=_both"), tiny_config()
    losses = [pd.read_csv(Path(run(one) and one.run_dir) / "history.csv")["loss"] for one in (both, plain)]
    pd.testing.assert_series_equal(*losses)


@pytest.mark.parametrize(
    ("names", "is_frozen"),
    [
        ("[old]", lambda name: "plasticity" not in name),
        ("[embedding.*,blocks.0.*]", lambda name: name.startswith(("embedding.", "blocks.0."))),
        ("[old,blocks.*.plasticity.scale]", lambda name: "plasticity" not in name or name.endswith("scale")),
    ],
)
@pytest.mark.parametrize(
    "more", [(), ("optimizer.new_lr=1e-2", "optimizer.decay_all=true")], ids=["one-rate", "own-rate"]
)
def test_frozen_parameters_stay_and_have_no_moments(tiny_config, names, is_frozen, more):
    config = tiny_config(f"optimizer.freeze={names}", "trainer.keep_final=true", "optimizer.lr=1e-2", *more)
    result = run(config)
    content = final_checkpoint(config)
    before = build_model(config.model, config.seed)
    parameters = dict(before.named_parameters())
    for name, parameter in parameters.items():
        assert torch.equal(content["state_dict"][f"model.{name}"], parameter) == is_frozen(name), name
    num_trained = sum(not is_frozen(name) for name in parameters)
    (optimizer,) = content["optimizer_states"]
    assert len(optimizer["state"]) == num_trained
    assert sum(len(group["params"]) for group in optimizer["param_groups"]) == num_trained
    # A model's size is no matter of what is trained.
    assert result["run"]["num_parameters"] == before.num_parameters


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("optimizer.freeze=[embeding.*]", r"optimizer\.freeze: got 'embeding\.\*', which no parameter has"),
        ("optimizer.freeze=['*']", r"optimizer\.freeze: got \*, which is all \d+ parameters"),
        ("optimizer.freeze=[old] model=mamba2", r"optimizer\.freeze: got old, which is all \d+ parameters"),
        ("optimizer.new_lr=1e-3 model=mamba2", r"optimizer\.new_lr: got 0\.001 with a model without metaplasticity"),
        ("optimizer.new_warmup_steps=1 model=gla", r"optimizer\.new_warmup_steps: got 1 with a model without"),
        ("optimizer.new_eps=1e-15 model=mamba2", r"optimizer\.new_eps: got 1e-15 with a model without"),
        ("optimizer.new_lr=0", r"optimizer\.new_lr: got 0\.0, expected > 0"),
    ],
)
def test_what_names_no_parameters_is_refused_before_anything_is_written(tiny_config, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        run(tiny_config(*overrides.split()))
    assert not (tmp_path / "runs").exists()


def test_an_eps_of_their_own_has_new_parameters_move_whose_gradients_are_tiny(tiny_config):
    """As of a model that was converted a moment ago: s is so low that Adam's usual eps is most of the denominator."""
    from safetensors.torch import save_file

    from palimpsa.training.storage.start import with_start_digest

    config = tiny_config()
    model = build_model(config.model, 1)
    weights = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if name.endswith("plasticity.scale"):
            value.fill_(-25.0)
    folder = Path(config.results_dir) / "folder"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "palimpsa"}')
    moved = {}
    for eps in ("null", "1e-20"):
        new = ("optimizer.new_lr=1e-1", f"optimizer.new_eps={eps}", f"variant=_{eps}", "trainer.keep_final=true")
        own = with_start_digest(tiny_config(f"start.weights={folder}", *new))
        run(own)
        state = final_checkpoint(own)["state_dict"]
        moved[eps] = (state["model.blocks.1.mixer.plasticity.scale"] + 25).abs().max().item()
    assert moved["null"] < 0.05
    assert moved["1e-20"] > 0.5
