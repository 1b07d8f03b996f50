"""How configs are composed: as Hydra does it, many at a time, and with Hydra's private parts behind one file."""

import re
from typing import Any

import pytest
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from palimpsa.config import compose as composition_module
from palimpsa.config.compose import CONFIG_DIR, Composer, compose_config, composition, expand_sweep
from palimpsa.config.errors import ConfigError

ROOT = CONFIG_DIR.parent


def test_no_other_file_names_private_parts_of_hydra():
    files = [path for folder in ("kernels", "src", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if "hydra._internal" in path.read_text()] == ["compose.py"]


def test_a_config_is_composed_by_one_call():
    config = compose_config(["model=gla", "seed=3"])
    assert (config.model.name, config.seed) == ("gla", 3)
    assert "hydra" not in config


def test_what_tests_compose_once_is_what_hydra_composes(tiny_overrides, tmp_path, request):
    """tests/conftest.py sets the place of the results afterwards, and hands each test a config of its own."""
    shared = request.getfixturevalue("compose_config")
    for places in (
        [tmp_path / "one"],
        [tmp_path / "another"],
        ["results"],
        [tmp_path, "results"],
        ["results", tmp_path],
    ):
        overrides = (*tiny_overrides, *(f"results_dir={place}" for place in places), "seed=3")
        expected, found = compose_config(overrides), shared(*overrides)
        assert found == expected
        for resolve in (False, True):
            assert OmegaConf.to_yaml(found, resolve=resolve) == OmegaConf.to_yaml(expected, resolve=resolve)
        assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
        found.seed = 4


# Outside of tests palimpsa.sweeps.launchers sees to it.
@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher")
def test_a_mistake_is_told_with_the_keys_of_the_config_at_hand():
    """Not with those of the default one: DeltaNet forgets nothing."""
    for model, nearest in (("palimpsa_d", "; did you mean 'forgetting'?"), ("deltanet", "")):
        with pytest.raises(
            ConfigError, match=r"^model\.mixer\.forgeting: unknown key, expected one of _target_, "
        ) as caught:
            compose_config([f"model={model}", "model.mixer.forgeting=small"])
        assert str(caught.value).partition(";")[1:] == nearest.partition(";")[1:]
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.n_job: unknown key, .*; did you mean 'n_jobs'\?$"):
        compose_config(["hydra/launcher=joblib", "hydra.launcher.n_job=2"])


def test_a_file_that_asks_for_one_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"^configs/model/lm/gla_170m\.yaml: model/lm: got 'gla', expected one of"):
        compose_config(["+model/lm=gla_170m"])


@pytest.mark.parametrize("value", ["[]", "null"])
@pytest.mark.parametrize("group", ["logger", "model", "+sweep"])
def test_a_group_that_is_left_empty_is_told_with_its_choices(group, value):
    name = group.removeprefix("+")
    with pytest.raises(ConfigError, match=rf"^{name}: got {re.escape(value)}, expected one of \w+, "):
        compose_config([f"{group}={value}"])


@pytest.mark.parametrize(
    ("overrides", "runs"),
    [
        ([], [""]),
        (["model=gla,mamba2", "seed=1,2"], ["gla 1", "gla 2", "mamba2 1", "mamba2 2"]),
        (["seed=range(1,4)"], ["1", "2", "3"]),
        (["seed=1,2", "seed=choice(4,5)"], ["4", "5"]),
        (["model=glob(g*)"], ["gated_deltanet", "gla"]),
        (["model=glob(x*)", "seed=1"], []),
    ],
)
def test_a_sweep_is_every_combination_of_its_values(overrides, runs):
    with composition(overrides):
        expanded = expand_sweep(overrides)
    assert [" ".join(override.partition("=")[2] for override in run) for run in expanded] == runs


def test_an_interval_cannot_be_listed():
    with composition([]), pytest.raises(ConfigError, match=r"^seed=interval\(1,2\): got an interval, expected values"):
        expand_sweep(["seed=interval(1,2)"])


COMMAND_LINES = {
    "groups and values": ["model=gla,mamba2", "task=mqar_scratch", "seed=1,2", "optimizer.lr=1,1e-3"],
    "a key twice": ["seed=1,2", "variant='3'", "seed=4,5"],
    "strings, null and interpolations": ["variant='',_b", "model.init_std=null,0.1", "logger.project=a,${variant}"],
    "keys above and below": ["task.stages=[{seq_len:8,num_pairs:2,max_steps:3}]", "task.stages.0.max_steps=1,2"],
    "below, then above": ["model.mixer.num_heads=1,2", "model.mixer={num_heads:4}"],
    "dictionaries": ["model.mixer={num_heads:4},{conv_width:2}", "seed=1,2"],
    "added and taken away": ["+model.mixer.norm_eps=1e-3,1e-4", "~model.mixer.conv_width", "seed=1,2"],
    "a value of one group alone": ["model=gla,transformer", "model.mixer.head_k_dim=4,8"],
    "a file of the sweep": ["+sweep=smoke", "model=gla,mamba2", "seed=1,2"],
}


def values_of(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_the_configs_of_a_sweep_are_those_that_hydra_composes(name):
    with composition([]):
        composer = Composer()
        combinations = expand_sweep(COMMAND_LINES[name])
        assert len(combinations) > 1
        for combination in combinations:
            composed = compose("train", combination)
            assert composer.compose(combination) == values_of(composed), combination


def test_hydra_composes_once_a_model_however_many_runs_there_are(monkeypatch):
    """What keeps a ledger of 192 runs a matter of seconds."""
    calls = []

    def counting(*arguments, **keywords):
        calls.append(arguments)
        return compose(*arguments, **keywords)

    monkeypatch.setattr(composition_module, "compose", counting)
    with composition([]):
        composer = Composer()
        combinations = expand_sweep(["model=gla,mamba2", "optimizer.lr=1,2,3", "seed=range(1,5)"])
        seen = {
            (config["model"]["name"], config["optimizer"]["lr"], config["seed"])
            for config in map(composer.compose, combinations)
        }
    assert len(seen) == len(combinations) == 2 * 3 * 4
    assert len(calls) == 2
