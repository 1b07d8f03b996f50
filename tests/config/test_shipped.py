"""Every shipped YAML is composed, checked and, where it makes a model or a task, built."""

import math
from dataclasses import asdict

import pytest
import torch

from palimpsa.config.checks import check_config
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.schema import TrainConfig, typed
from palimpsa.model.build import build_model, check_model
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.sweeps.sweep import Sweep
from palimpsa.tasks.build import build_task


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / folder).glob("*.yaml"))


# Experiments that are one run each.
PRETRAINING = ("commonsense_170m", "commonsense_760m")
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
    """An experiment as it is and on two CPU cores; a sweep there, with and without -m the same."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in names(folder):
        if name in PRETRAINING:
            continue
        own = [f"+{folder}={name}", f"results_dir={tmp_path}", "seed=1", "hydra.sweeper.selection_seeds=null"]
        # The lengths of the long curriculum are the paper's.
        small = ["scale=laptop", "trainer=cpu", "task.vocab_size=4096", "task.tokens_per_step=4096"]
        small.append("model=gla" if folder == "experiment" else "model=gla,gated_deltanet")
        planned = plan_command_line([*own, *small], multirun=False)
        assert len(planned.jobs) > 0
        if folder == "experiment":
            assert len(plan_command_line(own, multirun=False).jobs) > 0
        else:
            assert planned.jobs == plan_command_line([*own, *small], multirun=True).jobs, name


@pytest.mark.parametrize(
    ("name", "rate", "num_tokens"), [("commonsense_170m", 3e-3, 15e9), ("commonsense_760m", 1.25e-3, 30e9)]
)
def test_a_papers_pretraining_is_one_run_and_with_m_a_run_a_model(
    name, rate, num_tokens, tmp_path, write_text, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    data = f"task.data={write_text(tmp_path / 'text', num_documents=400)}"
    own = [f"+experiment={name}", data, f"results_dir={tmp_path}"]
    size = name.rpartition("_")[2]
    run = plan_command_line(own, multirun=False)
    assert isinstance(run, TrainConfig)
    assert (run.model.name, run.scale.name, run.trainer.name) == (f"palimpsa_d_{size}", "paper", "gpu")
    assert (run.optimizer.lr, run.optimizer.warmup_steps, run.task.final_lr_share) == (rate, 2_000, 0.1)
    task = build_task(run.task, run.seed)
    assert (task.stages[0].context, task.stages[0].tokens_per_step) == (4_096, 524_288)
    assert task.max_steps == math.ceil(num_tokens / 524_288)
    # Of another model, and what each of 8, 16 or 32 GPUs has of a step is a whole number of parts.
    other = plan_command_line([*own, f"model=lm/gla_{size}", "recipe=language_authors", "seed=42"], multirun=False)
    assert (other.model.name, other.optimizer.eps, other.seed) == (f"gla_{size}", 1e-15, 42)
    assert all(task.stages[0].batch_size % (n * run.trainer.accumulate) == 0 for n in (1, 8, 16, 32))
    sweep = plan_command_line([*own, "trainer.accumulate=8"], multirun=True)
    assert isinstance(sweep, Sweep)
    models = [job.config["model"]["name"] for job in sweep.jobs]
    assert models[0] == run.model.name
    assert len(models) == 6
    assert all(model.endswith(f"_{size}") for model in models)


def test_the_figures_are_experiments_at_the_papers_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    sweep = plan_command_line(["+experiment=figure2", f"results_dir={tmp_path}", "model=gla"], multirun=False)
    config = sweep.jobs[0].config
    assert (config["scale"]["name"], config["trainer"]["name"]) == ("h200", "gpu")
    assert len(sweep.jobs) == 4 * 8
    assert sweep.selection_seeds == {1, 2, 3, 4}
    assert sweep.jobs[0].directory == tmp_path / "runs/mqar_curriculum/h200/gla/lr_0.001/seed_1"
