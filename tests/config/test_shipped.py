"""Every shipped YAML is composed, checked and, where it makes a model or a task, built."""

from dataclasses import asdict

import pytest
import torch

from palimpsa.config.checks import check_config
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.schema import typed
from palimpsa.model.build import build_model, check_model
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.tasks.build import build_task


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / folder).glob("*.yaml"))


MODELS = [f"{folder}{name}" for folder in ("", "ablation/", "lm/") for name in names(f"model/{folder}")]


@pytest.mark.parametrize("scale", names("scale"))
@pytest.mark.parametrize("task", names("task"))
def test_every_task_is_built_at_every_scale(scale, task, compose_config, write_text, tmp_path):
    data = [f"task.data={write_text(tmp_path, num_documents=400)}"] if task == "commonsense" else []
    cfg = compose_config(f"scale={scale}", f"task={task}", *data)
    config = typed(cfg)
    check_config(config)
    assert (config.scale.name, config.task.name) == (scale, task)
    assert config.optimizer.warmup_steps == config.task.warmup_steps
    assert all(stage.max_steps > 0 for stage in build_task(config.task, 1).stages)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_built(model, compose_config):
    """At the larger scales docs/models.md counts them: see tests/model."""
    cfg = compose_config(f"model={model}")
    config = typed(cfg)
    check_config(config)
    assert config.model.name == model.rpartition("/")[2]
    check_model(asdict(config.model))
    with torch.device("meta"):
        assert build_model(config.model, None).num_parameters > 0


def test_the_scales_of_one_size_build_the_same_models(compose_config):
    sizes = [typed(compose_config(f"scale={scale}")).model for scale in ("h200", "paper")]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("group", ["trainer", "logger", "optimizer", "recipe"])
def test_every_other_choice_is_checked(group, compose_config):
    for name in names(group):
        cfg = compose_config(f"{group}={name}")
        check_config(typed(cfg))
        assert cfg[group].name == name


@pytest.mark.parametrize("folder", ["sweep", "experiment"])
def test_every_sweep_and_experiment_is_planned(folder, tmp_path, monkeypatch):
    """With and without -m it is the same sweep, and on two CPU cores too."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in names(folder):
        own = [f"+{folder}={name}", f"results_dir={tmp_path}", "seed=1", "hydra.sweeper.selection_seeds=null"]
        # The lengths of the long curriculum are the paper's.
        small = ["scale=laptop", "trainer=cpu", "model=gla,transformer", "task.vocab_size=4096"]
        small.append("task.tokens_per_step=4096")
        for more in ([], small) if folder == "experiment" else (small,):
            planned = [plan_command_line([*own, *more], multirun=multirun) for multirun in (False, True)]
            assert planned[0].jobs == planned[1].jobs, name
            assert len(planned[0].jobs) > 0


def test_the_figures_are_experiments_at_the_papers_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    sweep = plan_command_line(["+experiment=figure2", f"results_dir={tmp_path}", "model=gla"], multirun=False)
    config = sweep.jobs[0].config
    assert (config["scale"]["name"], config["trainer"]["name"]) == ("h200", "gpu")
    assert len(sweep.jobs) == 4 * 8
    assert sweep.selection_seeds == {1, 2, 3, 4}
    assert sweep.jobs[0].directory == tmp_path / "runs/mqar_curriculum/h200/gla/lr_0.001/seed_1"
