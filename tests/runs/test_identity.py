"""The identity of a run: every committed run has that of today's configs, and a new key at its neutral default none."""

import copy
import csv
import dataclasses
import json

import pytest

from palimpsa.config import keys, schema
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.keys import key
from palimpsa.config.schema import plain, typed
from palimpsa.runs import identity as identities
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.identity import (
    config_hash,
    differences,
    flatten,
    identity,
    protocol,
    protocol_hash,
    upgraded,
    with_key_expansion,
)
from palimpsa.runs.result import run_of
from palimpsa.runs.schema import DIVERGED

RESULTS = CONFIG_DIR.parent / "results"
# The pilot's caps were shorter than those of the runs that followed.
PILOT_CAPS = 1_500
# What the ablation calls a model that has another name today, and its label there.
RENAMED = {"palimpsa_d_scalar_beta": ("palimpsa_d_scalar", "Palimpsa-D, scalar beta")}


@pytest.fixture(scope="module")
def committed() -> list[tuple[dict, str, str]]:
    """The plain config of every committed run as today's configs make it, and its two hashes in the CSV file."""
    bases: dict[tuple[str, ...], dict] = {}
    found = {}
    for folder in ("mqar", "pilot"):
        for row in csv.DictReader((RESULTS / folder / "runs.csv").open(newline="")):
            place = (folder, row["task"], row["scale"], row["model"])
            if place not in bases:
                bases[place] = compose_committed(*place)
            run = (*place, row["lr"], row["seed"], row["run_seq_len"])
            if run not in found:
                config = copy.deepcopy(bases[place])
                config["optimizer"]["lr"], config["seed"] = float(row["lr"]), int(row["seed"])
                found[run] = config, row["config_hash"], row["protocol_hash"]
    return list(found.values())


def compose_committed(folder: str, task: str, scale: str, model: str) -> dict:
    from hydra import compose, initialize_config_dir

    schema.register_schema()
    below = "ablation/" if (CONFIG_DIR / f"model/ablation/{model}.yaml").exists() else ""
    group = "task" if (CONFIG_DIR / f"task/{task}.yaml").exists() else "+sweep"
    trainer = "cpu" if scale == "laptop" else "gpu"
    today, label = RENAMED.get(model, (model, None))
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        words = [f"{group}={task}", f"scale={scale}", f"model={below}{today}", f"trainer={trainer}"]
        words += [] if label is None else [f"model.name={model}", f"model.label='{label}'"]
        config = plain(typed(compose("train", words)))
    if folder == "pilot":
        for stage in config["task"]["stages"]:
            stage["max_steps"] = PILOT_CAPS
    return config


def test_every_committed_run_is_of_todays_configs(committed):
    assert len(committed) == 380 + 18
    for config, expected, expected_protocol in committed:
        assert config_hash(config) == expected, config["run_dir"]
        assert protocol_hash(config) == expected_protocol, config["run_dir"]


@pytest.mark.parametrize("group", ["TrainConfig", "ModelConfig", "MQARConfig", "StageConfig", "TrainerConfig"])
def test_a_new_key_at_its_neutral_default_changes_no_run(group, committed, monkeypatch):
    """Neither where a config says the default nor where it does not; another value makes another run."""
    old = getattr(schema, group)
    new = dataclasses.make_dataclass(
        f"New{group}", [("dropout", float, key(0.5, neutral=0.0))], bases=(old,), namespace={}
    )
    own_rules = keys.rules

    def rules(one: type) -> dict:
        return own_rules(new if one is old else one)

    monkeypatch.setattr(identities, "rules", rules)
    for config, expected, expected_protocol in committed[::7]:
        assert config_hash(config) == expected
        for value in (0.0, 0.5):
            other = copy.deepcopy(config)
            for place in groups_of(other, group):
                place["dropout"] = value
            if value == 0.0:
                assert config_hash(other) == expected
                assert protocol_hash(other) == expected_protocol
            elif groups_of(other, group):
                assert config_hash(other) != expected
                assert (protocol_hash(other) != expected_protocol) is (group != "ModelConfig")


def groups_of(config: dict, name: str) -> list[dict]:
    if name == "StageConfig":
        return config["task"]["stages"] or []
    return [
        {"TrainConfig": config, "MQARConfig": config["task"]}.get(name) or config[name.removesuffix("Config").lower()]
    ]


def test_a_mixers_default_may_be_spelled_out(committed):
    for config, expected, _ in committed[::30]:
        for name, value in schema.MIXER_DEFAULTS.items():
            other = copy.deepcopy(config)
            if name not in other["model"]["mixer"]:
                other["model"]["mixer"][name] = value
                assert config_hash(other) == expected
                other["model"]["mixer"][name] = "another"
                assert config_hash(other) != expected


def test_a_key_that_nobody_knows_makes_another_run(committed):
    config, expected, _ = committed[0]
    assert config_hash(config | {"unknown": None}) != expected
    assert "unknown.key" in protocol(config | {"unknown": {"key": 1}})


REPORTING = {
    "results_dir": "elsewhere",
    "run_dir": "elsewhere",
    "logger.name": "csv",
    "logger.group": "mine",
    "model.label": "Renamed",
    "trainer.progress_bar": False,
    "trainer.checkpoint_every": 7,
    "trainer.gpus": [0],
    "scale.d_model": 7,
    "scale.log_every": 7,
    "task.warmup_steps": 7,
    "task.sweep.seeds": "9",
}
SWEPT = {
    "seed": 9,
    "variant": "_b",
    "optimizer.lr": 0.5,
    "model.name": "other",
    "model.norm": "rmsnorm",
    "model.mixer.num_heads": 1,
    "task.directory": "other",
    "task.seq_len": 24,
}
SHARED = {
    "scale.name": "other",
    "task.name": "other",
    "task.stop_accuracy": 0.9,
    "task.num_test": 7,
    "task.schedule": "cosine",
    "optimizer.beta1": 0.5,
    "optimizer.warmup_steps": 7,
    "trainer.precision": "bf16-mixed",
    "trainer.log_every": 7,
    "trainer.num_threads": 3,
    "trainer.compile": True,
}


def changed(config: dict, place: str, value: object) -> dict:
    config = copy.deepcopy(config)
    *groups, name = place.split(".")
    group = config
    for part in groups:
        group = group[part]
    assert group[name] != value
    group[name] = value
    return config


@pytest.fixture(scope="module")
def config() -> dict:
    return compose_committed("mqar", "mqar_curriculum", "laptop", "gla")


@pytest.mark.parametrize("place", REPORTING)
def test_how_a_run_reports_is_no_part_of_it(place, config):
    other = changed(config, place, REPORTING[place])
    assert (config_hash(other), protocol_hash(other)) == (config_hash(config), protocol_hash(config))
    assert differences(config, other) == []


@pytest.mark.parametrize("place", SWEPT)
def test_runs_of_one_figure_may_differ_here(place, config):
    other = changed(config, place, SWEPT[place])
    assert protocol_hash(other) == protocol_hash(config)
    assert config_hash(other) != config_hash(config)
    assert [key for key, *_ in differences(config, other)] == [place]
    assert differences(config, other, swept=False) == []


@pytest.mark.parametrize("place", SHARED)
def test_runs_of_one_figure_may_not_differ_here(place, config):
    other = changed(config, place, SHARED[place])
    assert protocol_hash(other) != protocol_hash(config)
    assert config_hash(other) != config_hash(config)
    values = [repr(flatten(one)[place]) for one in (config, other)]
    assert differences(config, other) == [(place, *values)]


def test_a_stage_is_compared_without_what_is_neutral_in_it(config):
    other = copy.deepcopy(config)
    assert other["task"]["stages"][1].pop("in_figure")
    assert config_hash(other) == config_hash(config)
    other["task"]["stages"][1]["in_figure"] = False
    assert config_hash(other) != config_hash(config)


def as_the_old_tree_wrote_it(today: dict) -> dict:
    """A curriculum's config at laptop scale with MQAR's budget in its scale, and nothing that came since."""
    old = copy.deepcopy(today)
    task, mixer = old["task"], old["model"]["mixer"]
    stages = [{"seq_len": 8, "num_pairs": 2, "max_steps": 200, "in_figure": False}]
    scratch = {"seq_len": 16, "num_train_examples": 4096, "num_epochs": 6}
    old["scale"] |= {"curriculum": stages, "scratch": scratch, "wide_head_k_dim": 16, **task.pop("sweep")}
    moved = ("vocab_size", "tokens_per_step", "validation_every", "num_validation", "num_test")
    old["scale"] |= {name: task[name] for name in moved} | {"warmup_steps": task.pop("warmup_steps")}
    del task["kind"], old["optimizer"]["name"]
    if mixer.pop("key_expansion", None):
        mixer["head_k_dim"] = 16
    return old


@pytest.mark.parametrize("model", ["gla", "palimpsa_d_nometa_wide"])
def test_an_old_trees_config_is_that_of_the_same_run_today(model):
    today = compose_committed("mqar", "mqar_curriculum", "laptop", model)
    old = as_the_old_tree_wrote_it(today)
    before = copy.deepcopy(old)
    found = upgraded(old)
    assert old == before
    assert differences(found, today) == []
    assert config_hash(found) == config_hash(today)
    # Nothing but what came since is missing, and nothing is left where it was.
    came_since = {"task.kind", "optimizer.name"}
    assert flatten(today).keys() - flatten(found).keys() == came_since
    assert flatten(found).keys() <= flatten(today).keys()
    assert upgraded(found) == found
    assert plain(typed(found | {"task": found["task"] | {"kind": "mqar"}})) == today


@pytest.mark.parametrize("with_config", [True, False])
def test_an_old_trees_run_directory_is_recognised(with_config, config, tmp_path):
    old, other = as_the_old_tree_wrote_it(config), config | {"seed": 2}
    directory = RunDirectory(tmp_path)
    if with_config:
        directory.config_file.write_text(json.dumps(old))
        assert directory.inspect(config) is None
    error = "FloatingPointError: the loss is nan"
    result = {"format": 1, "status": "failed", "error": error, "run": run_of(config), "stages": [], "config": old}
    result |= {"config_hash": "0" * 16, "provenance": {"versions": {}}}
    directory.result_file.write_text(json.dumps(result))
    found = directory.inspect(config)
    assert found is not None
    assert (found["format"], found["status"], found["config_hash"]) == (3, DIVERGED, config_hash(config))
    with pytest.raises(RunDirectoryError, match=r"holds a run of another config \(seed: stored 1, now 2\)"):
        directory.inspect(other)


def test_a_config_that_is_damaged_stays_what_it_is():
    for config in (
        {},
        {"scale": 3},
        {"scale": {"seeds": "1"}, "task": 7},
        {"scale": {"wide_head_k_dim": 3}, "model": 2},
    ):
        assert isinstance(upgraded(config), dict)
        identity(upgraded(config))


def test_a_whole_number_is_one_value_however_it_is_written(committed):
    config, expected, _ = committed[0]
    one, other = copy.deepcopy(config), copy.deepcopy(config)
    one["model"]["mixer"] |= {"importance_prior": 10, "step_size_limit": [0, 1]}
    other["model"]["mixer"] |= {"importance_prior": 10.0, "step_size_limit": [-0.0, 1.0]}
    assert config_hash(one) == config_hash(other) != expected


def test_the_defaults_of_somebodys_own_mixer_are_not_ours(committed):
    """Its `conv_width` may start elsewhere than where ours do: spelled out it is another run."""
    config = copy.deepcopy(committed[0][0])
    config["model"]["mixer"] |= {"_target_": "mine.Mixer", "conv_width": 4}
    other = copy.deepcopy(config)
    del other["model"]["mixer"]["conv_width"]
    assert config_hash(config) != config_hash(other)


def test_graphs_and_checkpointed_blocks_change_no_identity_and_kinds_of_tasks_do(committed):
    config, expected, _ = committed[0]
    graphed, kind = copy.deepcopy(config), copy.deepcopy(config)
    graphed["trainer"]["cuda_graphs"] = not config["trainer"]["cuda_graphs"]
    graphed["trainer"]["checkpoint_blocks"] = True
    kind["task"]["kind"] = "text"
    assert config_hash(graphed) == expected != config_hash(kind)


def test_an_old_checkpoint_of_a_wide_model_is_that_of_todays():
    today = compose_committed("mqar", "mqar_curriculum", "laptop", "palimpsa_d_nometa_wide")["model"]
    old = copy.deepcopy(today)
    del old["mixer"]["key_expansion"]
    old["mixer"]["head_k_dim"] *= 2
    assert with_key_expansion(old, today)["mixer"]["head_k_dim"] == today["mixer"]["head_k_dim"]
    assert differences({"model": with_key_expansion(old, today)}, {"model": today}) == []
    old["mixer"]["head_k_dim"] += 1
    assert differences({"model": with_key_expansion(old, today)}, {"model": today}) != []
