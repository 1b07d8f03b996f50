"""A trained model as a command line: the run builds the very model, whatever the scale and the files of configs say."""

import dataclasses

import pytest
import torch

from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import plain, typed
from palimpsa.model.build import build_model


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def module():
    from palimpsa.finetuning import source

    return source


MODELS = [
    "model=palimpsa_d",
    "model=palimpsa_m_scalar ++model.mixer.strength=0.25",
    "model=mamba2 ++model.mixer.step_size_limit=[0.1,inf] ++model.mixer.num_groups=1 model.mixer.projection_bias=true",
    "model=palimpsa_d model.mixer.plasticity=grouped model.mixer.num_precisions=2 model.mixer.forgetting=normal",
    "model=lm/palimpsa_d_tiny model.d_model=32 model.num_layers=1 model.channel_width=16 model.label='it\\'s,[x]'",
]


@pytest.mark.parametrize("overrides", MODELS)
def test_the_command_line_of_a_model_builds_it_again(overrides, tiny_config, compose_config):
    config = tiny_config(*overrides.split(" "))
    lines = module().model_overrides(plain(config)["model"])
    again = typed(compose_config("scale=laptop", "task=mqar_curriculum", *lines))
    one, other = build_model(config.model, 1), build_model(again.model, 1)
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(one(tokens), other(tokens))
    assert dataclasses.asdict(again.model)["label"] == config.model.label
    assert again.model.mixer.items() >= config.model.mixer.items()


@pytest.mark.parametrize(
    "text", ["a b", "it's", "x\\'y", "trail\\", "${oc.env:HOME}", "a\\${y}", "$x{}", "\\\\'", "", "null"]
)
def test_a_text_on_a_command_line_is_itself(text, compose_config):
    """Of a label that somebody else wrote, nothing is looked up in the environment."""
    line = f"start.weights={module().as_override(text)}"
    assert typed(compose_config("model=palimpsa_d", "scale=laptop", "task=mqar_curriculum", line)).start.weights == text


def test_a_run_is_the_start_of_one_of_its_model_and_task(trained, compose_config):
    directory = trained("palimpsa_m")
    config = typed(compose_config(*module().source_overrides(directory, ["seed=4"])))
    assert module().default_task(directory, ["seed=4"]) == ["task=mqar_curriculum"]
    assert module().default_task(directory, ["task=commonsense"]) == []
    assert (config.model.name, config.seed, config.task.vocab_size) == ("palimpsa_m", 4, 32)
    assert config.start.weights == str(directory)
    assert config.task.name == "mqar_curriculum"
    own = typed(compose_config(*module().own_task_overrides(directory)))
    assert [stage.max_steps for stage in own.task.stages] == [7, 12]
    assert [stage.in_figure for stage in own.task.stages] == [False, True]


def test_a_run_of_a_renamed_task_has_that_task_still(trained, compose_config):
    """As those of experiments are: no file of configs/task has their name."""
    directory = trained("palimpsa_d", "task.name=mqar_forced", "task.directory=mqar_forced")
    for overrides, place in (
        (module().default_task(directory, []), "mqar_curriculum"),
        (module().own_task_overrides(directory), "mqar_forced"),
    ):
        task = typed(compose_config(*module().source_overrides(directory, overrides))).task
        assert (task.name, task.directory, task.tokens_per_step) == ("mqar_forced", place, 64)
        assert [stage.max_steps for stage in task.stages] == [7, 12]


def test_whether_there_are_importances_is_seen_by_class_and_key(trained, compose_config):
    for name, expected in (("palimpsa_d", True), ("mamba2", False), ("palimpsa_d_nometa", False), ("gla", False)):
        config = typed(compose_config(f"model={name}"))
        assert module().is_metaplastic(dataclasses.asdict(config.model)) is expected


def test_a_source_that_is_none_is_one_clear_error(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"^SOURCE: got '.*nowhere', which is not there"):
        module().source_overrides(tmp_path / "nowhere", [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^SOURCE: got '.*empty', expected the directory of a run"):
        module().source_overrides(tmp_path / "empty", [])
    with pytest.raises(ConfigError, match=r"^SOURCE: got a model of palimpsa\.mixers\.GLA, expected one of"):
        module().source_overrides(trained("gla"), [])


def test_a_folder_is_converted_anew_where_its_config_is_another_one_beside_the_same_weights(trained, tmp_path):
    import json

    from palimpsa.conversion.checkpoint import read_trained
    from palimpsa.conversion.folder import export_folder

    folder, place = tmp_path / "model", tmp_path / "converted"
    export_folder(read_trained(trained("palimpsa_d_nometa")), folder)
    before = module().converted(folder, place)
    assert module().converted(folder, place) == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_eps": 0.01}))
    after = module().converted(folder, place)
    assert after != before
    assert json.loads((after / "config.json").read_text())["norm_eps"] == 0.01


def test_a_conversion_without_its_report_is_done_again(mamba2, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module(), "write_atomic", full)
        with pytest.raises(OSError, match="No space left"):
            module().converted(mamba2, tmp_path / "converted")
    assert not list((tmp_path / "converted").iterdir())
    place = module().converted(mamba2, tmp_path / "converted")
    report = place.with_name(f"{place.name}.txt")
    assert "created" in report.read_text()
    # As a kill between the two leaves it.
    report.unlink()
    assert module().converted(mamba2, tmp_path / "converted") == place
    assert "created" in report.read_text()
