"""benchmark=training: every mistake of its command line is told before a run starts, and which runs it asks for."""

import pytest

from palimpsa.benchmark.config import load
from palimpsa.benchmark.run import benchmark_main
from palimpsa.benchmark.training_config import Windows, plan_runs
from palimpsa.config.compose import CONFIG_DIR

MISTAKES = {
    "models=[palimpsa]": ("models: got 'palimpsa'", "did you mean 'palimpsa_m'"),
    "models=[]": ("models: got []",),
    "models=[gla,gla]": ("models: got [gla, gla]", "each once"),
    "models=[lm/gla_170m]": ("models: got 'lm/gla_170m'",),
    "lengths=[24]": ("lengths: got 24", "scale=laptop: [8, 16, 32, 64]"),
    "lengths=[]": ("lengths: got []",),
    "lengths=[16,16]": ("lengths: got [16, 16]",),
    "scale=h200": ("scale=h200: needs an NVIDIA GPU",),
    "scale=h100": ("scale: got 'h100'", "did you mean 'h200'"),
    "scale=laptop,h200": ("scale=laptop,h200: got several values",),
    "+scale=h200": ("scale",),
    "trainer=gpu": ("trainer=gpu: needs an NVIDIA GPU",),
    "trainer=tpu": ("trainer: got 'tpu', expected one of auto, cpu, gpu",),
    "num_steps=0": ("num_steps: got 0, expected >= 1",),
    "num_steps=-5": ("num_steps: got -5",),
    "num_steps=1.5": ("num_steps",),
    "num_warmup_steps=0": ("num_warmup_steps: got 0",),
    "lr=0": ("lr: got 0.0, expected > 0",),
    "seed=-1": ("seed: got -1",),
    "seed=4294967296": ("seed: got 4294967296",),
    "lenghts=[16]": ("lenghts: unknown key", "did you mean 'lengths'"),
    "cases=[table]": ("cases: unknown key", "num_steps"),
    "+foo=1": ("foo: unknown key",),
    "name=operators": ("name: got 'operators', expected training",),
    "overrides=3": ("overrides: got 3",),
    "overrides={trainer.comple:true}": ("trainer.comple: unknown key", "did you mean 'compile'"),
    "overrides={trainer.log_every:0}": ("trainer.log_every: got 0, expected > 0",),
    "+overrides.trainer.log_every=x": ("trainer.log_every", "Integer"),
    "overrides={model.mixer.conv:3}": ("model.mixer.conv: unknown key", "did you mean 'conv_width'"),
    "overrides={task.stages:3}": ("task.stages: got 3, expected a list",),
    "overrides={task.stop_accuracy:0.5}": ("overrides: got task.stop_accuracy",),
    "overrides={logger.mode:online}": ("overrides: got logger.mode",),
    "fresh=maybe": ("fresh", "'maybe'"),
    "results_dir=''": ("results_dir: got an empty string",),
    "benchmark=trainin": ("benchmark: got 'trainin'", "did you mean 'training'"),
    "benchmark=": ("benchmark: got ''",),
    "benchmark=[training]": ("benchmark: got ['training'], expected one of operators, training",),
    "benchmark.models=3": ("benchmark: unknown key",),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_key_before_anything_starts(mistake, tmp_path, runs_asked_for, capsys):
    assert benchmark_main(["benchmark=training", "models=[gla]", f"results_dir={tmp_path}", mistake]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    for part in MISTAKES[mistake]:
        assert part in told.err
    assert not told.out
    assert not runs_asked_for
    assert not list(tmp_path.iterdir())


def test_by_default_every_model_is_measured_at_every_length_of_the_figure(tmp_path):
    config = load(["benchmark=training", f"results_dir={tmp_path}"])
    runs = plan_runs(config)
    models = {path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")}
    assert {(run.model, run.seq_len) for run in runs} == {(name, length) for name in models for length in (16, 32, 64)}
    assert (config.scale, config.trainer) == ("laptop", "cpu")
    # Logs every 10 steps, validations every 25, checkpoints every 100.
    assert {run.windows for run in runs} == {Windows(25, 100)}
    for run in runs:
        (stage,) = run.cfg.task.stages
        assert stage.seq_len == run.seq_len
        assert stage.num_pairs == run.seq_len // 4
        # It ends neither by its cap nor by its accuracy.
        assert stage.max_steps > run.windows.profiled_end
        assert run.cfg.task.stop_accuracy > 1
        assert run.cfg.logger.name == "csv"


def test_with_a_gpu_the_scale_is_the_papers_and_each_length_is_its_stage_of_the_figure(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    config = load(["benchmark=training", f"results_dir={tmp_path}", "models=[gla]"])
    runs = plan_runs(config)
    assert (config.scale, config.trainer, config.lengths) == ("h200", "gpu", [128, 256, 512, 1024])
    assert [run.cfg.task.stages[0].num_pairs for run in runs] == [32, 64, 128, 256]
    assert runs[0].windows == Windows(100, 500)
    config = load(["benchmark=training", f"results_dir={tmp_path}", "models=[gla]", "trainer=cpu"])
    assert plan_runs(config)[0].cfg.scale.name == "laptop"


def test_a_window_holds_what_is_due_after_its_start_up_to_its_end():
    for num_warmup, num_steps, every in [(1, 1, 1), (3, 12, 4), (5, 12, 5), (25, 100, 40), (100, 500, 250)]:
        windows = Windows(num_warmup, num_steps)
        steps = range(num_warmup + 1, windows.end + 1)
        assert windows.num_due(every) == sum(step % every == 0 for step in steps)
        # What comes after the clock: that of the warm-up's last step is in, that of the window's last step is not.
        assert windows.num_due(every, late=True) == sum(step % every == 0 for step in range(num_warmup, windows.end))
