"""The schema: what it takes, what it refuses in one line, and what travels of it."""

import dataclasses
import inspect
import json

import pytest

from palimpsa import mixers
from palimpsa.config.checks import check_config
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import MISSING, KeyRule, key, rules, schema_keys
from palimpsa.config.moved import MOVED_KEYS
from palimpsa.config.schema import (
    MIXER_DEFAULTS,
    TASK_SCHEMAS,
    MQARConfig,
    StageConfig,
    TaskConfig,
    TrainConfig,
    plain,
    typed,
)


@pytest.fixture
def config(tiny_config) -> dict:
    """A plain config, all of its own."""
    return plain(tiny_config())


def test_a_config_travels_typed_and_back(config, tiny_config):
    one = tiny_config("+model.mixer.step_size_limit=[0,inf]", "optimizer.lr=1")
    assert isinstance(one.task, MQARConfig)
    assert one.task.stages == [StageConfig(8, 2, 7, in_figure=False), StageConfig(16, 4, 12)]
    assert type(one.model.mixer) is dict
    assert one.model.mixer["step_size_limit"] == [0, float("inf")]
    assert plain(one)["model"]["mixer"]["step_size_limit"] == [0, "inf"]
    assert type(one.optimizer.lr) is float
    # Every default is spelled out, and JSON holds all of it.
    assert plain(typed(config)) == config == json.loads(json.dumps(config, allow_nan=False))
    assert [stage["in_figure"] for stage in config["task"]["stages"]] == [False, True]
    assert (config["trainer"]["gpus"], config["trainer"]["compile"]) == (None, False)


MISTAKES = [
    ("seed", None, "seed: got None, expected int"),
    ("seed", True, "seed: got True, expected int"),
    ("sede", 1, "sede: unknown key, expected one of seed, .*; did you mean 'seed'?"),
    ("optimizer.lr", "high", "optimizer.lr: got 'high', expected float"),
    ("model.label", "", "model.label: got '', expected what figures and tables call it"),
    ("model.label", " \n", "model.label: got .*, expected what figures"),
    ("model.label", "a\x1b[31m", r"model.label: got 'a\\x1b\[31m', expected what figures"),
    ("model.name", "", "model.name: got '', expected a name for files"),
    ("task.name", "", "task.name: got '', expected a name for files"),
    ("scale.name", " ", "scale.name: got ' ', expected a name for files"),
    ("optimizer.lr", -1, "optimizer.lr: got -1.0, expected > 0"),
    ("optimizer.beta1", 1, "optimizer.beta1: got 1.0, expected >= 0 and < 1"),
    ("optimizer.gradient_clip", float("inf"), "optimizer.gradient_clip: got inf, expected > 0"),
    ("seed", 2**32, "seed: got 4294967296, expected at most 4294967295"),
    ("trainer.gpus", [0, "a"], r"trainer.gpus: got \[0, 'a'\], expected list\[int\] \| None"),
    ("trainer.accelerator", "cpp", "trainer.accelerator: got 'cpp', expected one of cpu, gpu; did you mean 'cpu'?"),
    ("trainer", 3, "trainer: got 3, expected name, accelerator"),
    ("logger.mode", "on", "logger.mode: got 'on', expected one of offline, online, disabled"),
    ("task.kind", "text", "task.kind: got 'text', expected one of mqar"),
    ("task.powr", 1, "task.powr: unknown key, .*; did you mean 'power'?"),
    ("task.stages", [], "task.stages: got an empty list, expected at least one item"),
    ("task.stages", 3, "task.stages: got 3, expected a list"),
    ("task.stages", [{"seq_len": 8}], r"task.stages\[0\].num_pairs: missing, expected int"),
    ("task.stages", [{"seq_len": 8, "num_pair": 2}], r"task.stages\[0\].num_pair: unknown key, .* mean 'num_pairs'?"),
    ("task.stages", [7], r"task.stages\[0\]: got 7, expected seq_len, num_pairs, max_steps, in_figure"),
    (
        "task.stages",
        [{"seq_len": 8, "num_pairs": 2, "max_steps": 0}],
        r"task.stages\[0\].max_steps: got 0, expected >= 1",
    ),
    ("scale.seeds", "1,2", "scale.seeds: unknown key, it is task.sweep.seeds now"),
]


@pytest.mark.parametrize(("place", "value", "message"), MISTAKES, ids=[f"{one[0]}={one[1]}" for one in MISTAKES])
def test_a_value_that_cannot_be_is_one_line(config, place, value, message):
    *groups, name = place.split(".")
    group = config
    for part in groups:
        group = group[part]
    group[name] = value
    with pytest.raises(ConfigError, match=f"^{message.replace('?', '[?]')}") as caught:
        check_config(typed(config))
    assert "\n" not in str(caught.value)


def test_a_key_that_is_missing_is_named(config):
    del config["optimizer"]["beta2"]
    with pytest.raises(ConfigError, match=r"^optimizer.beta2: missing, expected float$"):
        typed(config)


def test_a_default_needs_no_mention(config):
    del config["trainer"]["cuda_graphs"], config["task"]["stages"][1]["in_figure"]
    assert typed(config).trainer.cuda_graphs is False
    assert typed(config).task.stages[1].in_figure


def test_another_kind_of_task_is_one_schema(config, monkeypatch):
    @dataclasses.dataclass
    class TextConfig(TaskConfig):
        context: int = key(minimum=1, unit="tokens")

    monkeypatch.setitem(TASK_SCHEMAS, "text", TextConfig)
    common = {one.name for one in dataclasses.fields(TaskConfig)}
    config["task"] = {name: value for name, value in config["task"].items() if name in common}
    config["task"] |= {"kind": "text", "context": 0}
    with pytest.raises(ConfigError, match=r"^task.context: got 0, expected >= 1$"):
        check_config(typed(config))
    config["task"]["context"] = 64
    assert isinstance(typed(config).task, TextConfig)
    assert "context" in schema_keys(["task"], TrainConfig)


def test_a_misspelt_rule_is_refused():
    with pytest.raises(TypeError, match="minimun"):
        key(minimun=0)


def test_what_a_mixer_does_without_being_asked_changes_no_identity():
    """Else a config that spells a default out would be another run than one that does not."""
    for name in mixers.__all__:
        mixer = getattr(mixers, name)
        if not (isinstance(mixer, type) and issubclass(mixer, mixers.Mixer)):
            continue
        for parameter in inspect.signature(mixer).parameters.values():
            if parameter.default is not parameter.empty:
                assert MIXER_DEFAULTS[parameter.name] == parameter.default, f"{name}.{parameter.name}"


def test_every_default_is_neutral_and_in_its_own_range():
    def check(schema: type) -> None:
        for one in dataclasses.fields(schema):
            rule = rules(schema)[one.name]
            for below in (*rule.kinds.values(), rule.items, one.default_factory):
                if isinstance(below, type) and dataclasses.is_dataclass(below):
                    check(below)
            if one.default is not dataclasses.MISSING and one.default != MISSING:
                rule.check(one.name, one.default)
                assert rule.neutral != MISSING, one.name

    check(TrainConfig)


def test_keys_that_moved_are_gone_and_their_new_places_are_there():
    for old, new in MOVED_KEYS.items():
        *groups, name = old.split(".")
        assert name not in schema_keys(groups, TrainConfig)
        *groups, name = new.split(".")
        assert name in (schema_keys(groups, TrainConfig) or MIXER_DEFAULTS)


def test_true_is_not_the_neutral_one():
    assert KeyRule(neutral=1).is_neutral(1.0)
    assert not KeyRule(neutral=1).is_neutral(True)


def test_every_yaml_is_of_a_group_that_a_test_knows():
    """So that a new folder of configs gets a test that builds what is in it: see test_shipped."""
    found = {path.relative_to(CONFIG_DIR).parts[0] for path in CONFIG_DIR.rglob("*.yaml")}
    groups = {"model", "size", "task", "scale", "optimizer", "recipe", "source", "trainer", "logger", "sweep"}
    alone = {"benchmark", "train.yaml", "benchmark.yaml", "prepare_text.yaml", "evaluate.yaml"}
    # See tests/evaluation/calibration and tests/finetuning.
    alone |= {"calibrate.yaml"}
    alone |= {"finetune.yaml", "demonstrate.yaml", "demonstration"}
    assert found == groups | alone | {"experiment", "hydra"}
