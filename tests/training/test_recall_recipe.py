"""The authors' recipe for associative recall: what it changes, and that each of its switches does its part alone."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.config.compose import compose_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import plain, typed
from palimpsa.mixers.parameters import initial_decay
from palimpsa.model.build import build_model
from palimpsa.runs.identity import differences

SCRATCH = ("task=mqar_scratch", "scale=h200")
# Each switch alone, and the value that it has in the recipe.
SWITCHES = {
    "palimpsa_d": {
        "optimizer.dtype": "bfloat16",
        "optimizer.beta2": 0.999,
        "optimizer.decay_all": True,
        "optimizer.gradient_clip": None,
        "optimizer.warmup_steps": 0,
        "task.schedule": "cosine_by_epoch",
        "model.norm": "rmsnorm",
        "model.final_norm": "layernorm",
        "model.mixer.conv_init_std": 128**-0.5,
        "model.mixer.up_init": "uniform",
    },
}
SWITCHES["palimpsa_m"] = {
    **SWITCHES["palimpsa_d"],
    "model.mixer.num_norm_groups": 1,
    "model.mixer.projection_bias": True,
    "model.mixer.conv_bias": False,
}


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def run(config):
    from palimpsa.training.run import run as run_it

    return run_it(config)


def final_checkpoint(config) -> dict:
    return torch.load(Path(config.run_dir) / "checkpoints/last.ckpt", weights_only=True)


def composed(*overrides: str) -> dict:
    return plain(typed(compose_config([*SCRATCH, *overrides])))


def changed_keys(*overrides: str) -> dict:
    return {name: value for name, _, value in differences(composed(overrides[0]), composed(*overrides))}


@pytest.mark.parametrize("model", SWITCHES)
def test_the_recipe_is_its_switches_and_each_works_alone(model):
    expected = {name: repr(value) for name, value in SWITCHES[model].items()}
    found = changed_keys(f"model={model}", "recipe=mqar_authors")
    found["model.mixer.conv_init_std"] = repr(float(found["model.mixer.conv_init_std"]))
    assert found == expected
    for name, value in SWITCHES[model].items():
        word = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
        assert set(changed_keys(f"model={model}", f"{name}={word}")) == {name}


def test_windows_of_very_small_forgetting_are_ten_times_as_long():
    windows = {}
    for forgetting in ("very_small", "small"):
        rate, step_size = initial_decay(8, forgetting)
        windows[forgetting] = 1 / -torch.expm1(-rate.double() * step_size.double())
    torch.testing.assert_close(
        windows["very_small"] / windows["small"], torch.full((8,), 10.0).double(), rtol=1e-3, atol=0
    )
    # Of GLA too, in another parametrisation.
    longer, shorter = (built("model=gla", f"model.mixer.forgetting={name}") for name in ("very_small", "small"))
    assert (longer.blocks[0].mixer.decay_bias - shorter.blocks[0].mixer.decay_bias).min() > 2.2


def built(*overrides: str):
    return build_model(typed(compose_config(["scale=h200", *overrides])).model, 1)


def test_w_up_alone_starts_uniform_in_the_root_of_its_rank():
    for init, is_uniform in (("normal", False), ("uniform", True)):
        plasticity = built("model.mixer.up_init=" + init).blocks[1].mixer.plasticity
        largest = plasticity.up.weight.abs().max().item()
        # Of 2,048 numbers of N(0, 1/128) the largest is 3 to 4 standard deviations away, which is less.
        assert (0.99 * 8**-0.5 < largest <= 8**-0.5) is is_uniform
        if is_uniform:
            assert plasticity.up.weight.std().item() == pytest.approx((8 * 3) ** -0.5, rel=0.05)
        assert plasticity.down.weight.std().item() == pytest.approx(128**-0.5, rel=0.1)
    # What has no plasticity starts as ever.
    ours, twin = built("model=palimpsa_d_nometa"), built("model=palimpsa_d_nometa", "model.mixer.up_init=uniform")
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="up_init: got 'unifrom', expected one of normal, uniform"):
        built("model.mixer.up_init=unifrom")


def test_norms_before_the_mixers_and_at_the_end_may_differ():
    def kinds(*overrides: str) -> tuple[type, type]:
        model = built(*overrides)
        return type(model.blocks[0].mixer_norm), type(model.norm)

    assert kinds() == (torch.nn.LayerNorm, torch.nn.LayerNorm)
    assert kinds("model.norm=rmsnorm") == (torch.nn.RMSNorm, torch.nn.RMSNorm)
    assert kinds("recipe=mqar_authors") == (torch.nn.RMSNorm, torch.nn.LayerNorm)
    with pytest.raises(ValueError, match="final_norm: got 'groupnorm', expected one of layernorm, rmsnorm"):
        built("model.final_norm=groupnorm")


def test_palimpsa_m_has_the_authors_norm_and_biases():
    ours, authors = (built("model=palimpsa_m", f"recipe={name}").blocks[0].mixer for name in ("ours", "mqar_authors"))
    assert (ours.o_norm.num_groups, authors.o_norm.num_groups) == (8, 1)
    assert (ours.in_proj.bias, authors.conv.bias) == (None, None)
    assert ours.conv.bias is not None
    assert authors.in_proj.bias.abs().max() == authors.out_proj.bias.abs().max() == 0


def decays_of(name: str, *overrides: str) -> dict[str, float]:
    """The weight decay of every parameter."""
    from palimpsa.training.optimizer import make_optimizer

    config = typed(compose_config([f"model={name}", *overrides]))
    model = build_model(config.model, 1)
    groups = make_optimizer(model, config.optimizer, torch.device("cpu")).param_groups
    by_id = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    return {parameter: by_id[id(p)] for parameter, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_m", "gated_deltanet", "gla", "simple_gla"])
def test_forgetting_decays_at_a_strength_of_its_own(name):
    own = (".decay.log_rate", ".decay.bias", ".decay_bias")
    ours, found = decays_of(name), decays_of(name, "optimizer.forgetting_decay=0.3")
    assert {parameter for parameter in ours if found[parameter] != ours[parameter]} == {
        parameter for parameter in ours if parameter.endswith(own)
    }
    assert {found[parameter] for parameter in found if parameter.endswith(own)} == {0.3}
    # Whatever all others do.
    assert set(decays_of(name, "optimizer.forgetting_decay=0.0", "optimizer.decay_all=true").values()) == {0.0, 0.1}


def test_a_decay_of_windows_makes_them_shorter(tiny_config):
    windows = {}
    for strength in ("null", "100.0"):
        config = tiny_config(f"optimizer.forgetting_decay={strength}", f"variant=_{strength}")
        run(config)
        windows[strength] = pd.read_csv(Path(config.run_dir) / "history.csv")["window_mean"].dropna()
    assert windows["null"].iloc[-1] > 100
    assert windows["100.0"].iloc[-1] < 10


@pytest.mark.parametrize("gradient_clip", ["1e-3", "null"])
def test_gradients_are_clipped_or_left(tiny_config, gradient_clip):
    from palimpsa.training.optimizer import clip_gradients

    config = tiny_config(f"optimizer.gradient_clip={gradient_clip}").optimizer
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients(torch.optim.SGD([weight]), config.gradient_clip) == 5
    assert weight.grad.norm().item() == pytest.approx(5 if config.gradient_clip is None else 1e-3, rel=1e-3)


def epochs(*overrides: str) -> Sequence[str]:
    small = ("task.num_train_examples=16", "task.num_epochs=4", "task.stop_accuracy=2", "trainer.log_every=1")
    return ("task=mqar_scratch", "task.stages=null", *small, *overrides)


def rates_of(config) -> list[float]:
    """Of every step: a row of the curves has the rate of the step that comes next."""
    run(config)
    curves = pd.read_csv(Path(config.run_dir) / "history.csv")
    return [config.optimizer.lr, *curves["learning_rate"].dropna().tolist()[:-1]]


def test_a_cosine_by_epoch_is_level_within_one(tiny_config):
    """Sixteen examples in steps of four; both cosines agree where an epoch begins."""
    own = [
        ("optimizer.warmup_steps=0", f"task.schedule={name}", f"variant=_{name}")
        for name in ("cosine", "cosine_by_epoch")
    ]
    smooth, level = (rates_of(tiny_config(*epochs(*overrides))) for overrides in own)
    assert len(level) == 16
    assert len(set(smooth)) == 16
    for start in range(0, 16, 4):
        assert level[start : start + 4] == [smooth[start]] * 4
    assert level[0] == pytest.approx(4.64e-3)


def test_a_cosine_by_epoch_needs_epochs(tiny_config, tmp_path):
    with pytest.raises(
        ConfigError, match=r"task\.schedule: got cosine_by_epoch with task=mqar_curriculum, which has no"
    ):
        run(tiny_config("task.schedule=cosine_by_epoch"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["palimpsa_d", "palimpsa_m", "gated_deltanet", "gla", "transformer"])
def test_weights_and_both_moments_are_kept_in_a_dtype(tiny_config, model, dtype):
    config = tiny_config(f"model={model}", f"optimizer.dtype={dtype}", "trainer.keep_final=true")
    run(config)
    content, expected = final_checkpoint(config), getattr(torch, dtype)
    parameters = dict(build_model(config.model, 1).named_parameters())
    assert {content["state_dict"][f"model.{name}"].dtype for name in parameters} == {expected}
    (optimizer,) = content["optimizer_states"]
    assert {state[name].dtype for state in optimizer["state"].values() for name in ("exp_avg", "exp_avg_sq")} == {
        expected
    }


def test_in_bf16_small_steps_of_forgetting_round_to_nothing(tiny_config):
    """And so does weight decay; in fp32 both move."""
    moved = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(
            f"optimizer.dtype={dtype}", "optimizer.lr=1e-3", "optimizer.forgetting_decay=0.1", f"variant=_{dtype}",
            "trainer.keep_final=true",
        )  # fmt: skip
        run(config)
        first = dict(build_model(config.model, 1).named_parameters())["blocks.0.mixer.decay.log_rate"]
        last = final_checkpoint(config)["state_dict"]["model.blocks.0.mixer.decay.log_rate"]
        moved[dtype] = not torch.equal(last, first.to(last.dtype))
    assert moved == {"float32": True, "bfloat16": False}


@pytest.mark.parametrize("recipe", ["ours", "mqar_authors"])
def test_a_run_of_either_recipe_goes_on_to_the_same_end(tiny_config, monkeypatch, recipe):
    from palimpsa.training.module import TrainingModule

    overrides = epochs(f"recipe={recipe}", "model=palimpsa_m", "trainer.keep_final=true", "trainer.checkpoint_every=3")
    whole, broken = tiny_config(*overrides), tiny_config(*overrides, "variant=_broken")
    run(whole)
    step = TrainingModule.training_step

    def stop(self, batch, batch_idx):
        if self.trainer.global_step == 10:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    monkeypatch.setattr(TrainingModule, "training_step", step)
    assert final_checkpoint(broken)["global_step"] == 9
    run(broken)
    one, other = (final_checkpoint(config) for config in (whole, broken))
    assert one["global_step"] == 16
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.dtype=float16", r"optimizer\.dtype: got 'float16', expected one of float32, bfloat16"),
        ("optimizer.forgetting_decay=-0.1", r"optimizer\.forgetting_decay: got -0\.1, expected >= 0"),
        ("optimizer.forgetting_decay=0.1 model=deltanet", r"optimizer\.forgetting_decay: got 0\.1 with a model that"),
        ("optimizer.gradient_clip=0", r"optimizer\.gradient_clip: got 0\.0, expected > 0"),
        ("model.final_norm=none", r"model\.final_norm: got 'none', expected one of layernorm, rmsnorm"),
        ("model.mixer.up_init=zero", r"model\.mixer\.up_init: got 'zero', expected one of normal, uniform"),
        (
            "recipe=mqar_authors recipe.forgetting=very_small optimizer.dtype=float32",
            r"recipe\.forgetting: got 'very_small', which .* expected model\.mixer\.forgetting=very_small",
        ),
        ("task.schedule=step", r"task\.schedule: got 'step', expected one of constant, cosine, cosine_by_epoch"),
    ],
)
def test_switches_have_ranges(tiny_config, override, words):
    with pytest.raises(ConfigError, match=words):
        run(tiny_config(*override.split()))
