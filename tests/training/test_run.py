"""A run from config to result: what it records, that it resumes exactly, and what it refuses."""

import json
import math
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.mixers import MemoryTrace
from palimpsa.model.build import build_model
from palimpsa.runs.directory import RunDirectory
from palimpsa.tasks.mqar_examples import mqar_examples
from palimpsa.tasks.stages import stages_from_config
from palimpsa.training.memory_probe import memory_metrics, metaplasticity_ratio
from palimpsa.training.run import run

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))
WITHOUT_IMPORTANCE = ("palimpsa_d_nometa", "palimpsa_d_nometa_wide", "mamba2", "mamba2_wide")
PALIMPSA = ("palimpsa_d", "palimpsa_d_scalar", "palimpsa_m", "palimpsa_m_scalar", *WITHOUT_IMPORTANCE)
WITHOUT_DECAY = ("deltanet", "transformer")
# The training losses of each model over 19 steps. A refactor leaves them; a change that moves them says why.
GOLDEN_LOSSES = json.loads(Path(__file__).with_name("golden_losses.json").read_text())
TIMINGS = ("tokens_per_s",)


def comparable(directory: Path):
    """What two runs of one config must share: all but times."""
    result = json.loads((directory / "result.json").read_text())
    history = pd.read_csv(directory / "history.csv").drop(columns=list(TIMINGS))
    return result["stages"], result["run"], result["config_hash"], history.to_csv()


@pytest.mark.parametrize("name", MODELS)
def test_result_and_history_of_every_model(tiny_config, name):
    cfg = tiny_config(f"model={name}")
    result = run(cfg)
    directory = Path(cfg.run_dir)
    assert json.loads((directory / "result.json").read_text()) == result
    assert result["format"] == 3
    assert result["metrics"]["history_rows"] == len(pd.read_csv(directory / "history.csv"))
    assert result["status"] == "finished"
    assert result["error"] is None
    assert result["run"]["model"] == name
    assert result["run"]["seed"] == 1
    # Equal on one machine; others round in another order.
    losses = pd.read_csv(directory / "history.csv")["loss"].dropna().tolist()
    assert losses == pytest.approx(GOLDEN_LOSSES[name], rel=1e-5)

    model = build_model(cfg.model, 1)
    assert result["run"]["state_size"] == model.state_size
    assert result["run"]["num_parameters"] == model.num_parameters

    warm_up, tested = result["stages"]
    assert (warm_up["seq_len"], warm_up["steps"], warm_up["ended_by"]) == (8, 7, "cap")
    assert warm_up["test_accuracy"] is None
    assert (tested["seq_len"], tested["num_pairs"], tested["steps"]) == (16, 4, 12)
    assert 0 <= tested["test_accuracy"] <= 1
    assert len(tested["test_accuracy_by_age"]) == 4

    history = pd.read_csv(directory / "history.csv").set_index("step")
    # At every third step of a stage and before every validation; the second stage began at step 7.
    assert history.index[history["loss"].notna()].tolist() == [3, 5, 6, 7, 10, 12, 13, 16, 17, 19]
    assert history.index[history["validation_accuracy"].notna()].tolist() == [5, 7, 12, 17, 19]
    assert (history["tokens_per_s"].dropna() > 0).all()
    if name in WITHOUT_DECAY:
        assert "window_mean" not in history
    else:
        assert history.index[history["window_mean"].notna()].tolist() == [0, 4, 8, 12, 16]
        heads = [f"window/layer{layer}/head{head}" for layer in (0, 1) for head in (0, 1)]
        assert history[heads].mean(axis=1).dropna().tolist() == pytest.approx(history["window_mean"].dropna().tolist())
    if name not in PALIMPSA:
        assert "metaplasticity_mean" not in history
    elif name in WITHOUT_IMPORTANCE:
        assert (history["metaplasticity_mean"].dropna() == 0).all()
    else:
        assert (history["metaplasticity_mean"].dropna() > 0).all()
    assert result["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["provenance"]["device"]


def test_same_seed_same_run_and_another_seed_another(tiny_config, tmp_path):
    first, again, other = (tiny_config(f"results_dir={tmp_path}/{i}", f"seed={s}") for i, s in enumerate((1, 1, 2)))
    for cfg in (first, again, other):
        run(cfg)
    first, again, other = (comparable(Path(cfg.run_dir)) for cfg in (first, again, other))
    assert first[0] == again[0]
    assert first[3] == again[3]
    assert first[3] != other[3]


def test_training_learns(tiny_config):
    """The loss of an easy task falls far below what guessing a value gives."""
    cfg = tiny_config(
        "task.stages=[{seq_len:8,num_pairs:2,max_steps:150}]",
        "task.tokens_per_step=512",
        "optimizer.lr=2e-2",
        "trainer.log_every=10",
        "task.validation_every=50",
    )
    losses = pd.read_csv(Path(run(cfg) and cfg.run_dir) / "history.csv")["loss"].dropna()
    assert losses.iloc[0] > 0.9 * math.log(16)
    assert losses.iloc[-1] < 0.5 * math.log(16)


def test_a_stage_ends_at_its_accuracy_and_hands_its_weights_on(tiny_config):
    cfg = tiny_config("task.stop_accuracy=1e-9", "task.validation_every=2", "task.num_validation=512")
    result = run(cfg)
    assert [(s["steps"], s["ended_by"]) for s in result["stages"]] == [(2, "accuracy"), (2, "accuracy")]
    assert result["metrics"]["num_steps"] == 4


def test_scratch_goes_through_a_fixed_set_once_an_epoch(tiny_config):
    cfg = tiny_config(
        "task=mqar_scratch", "task.stages=null", "task.seq_len=16", "task.num_train_examples=10", "task.num_epochs=2"
    )
    (stage,) = stages_from_config(cfg.task)
    assert (stage.batch_size, stage.max_steps, stage.spec.num_pairs) == (4, 6, 4)
    batches = [
        mqar_examples(stage.spec, seed=1, split="train", stage=0, examples=stage.train_examples(1, step, "cpu")).inputs
        for step in range(6)
    ]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    epochs = [torch.cat(batches[:3]), torch.cat(batches[3:])]
    assert not torch.equal(*epochs)
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist())
    result = run(cfg)
    assert result["metrics"]["num_steps"] == 6
    assert result["stages"][0]["test_accuracy"] is not None


def test_memory_metrics_are_means_over_contexts_and_heads():
    importance = torch.ones(2, 1, 2, 3)
    importance[0, 0, 1, 2] = 5.0
    assert metaplasticity_ratio(importance).tolist() == [[4.0], [0.0]]
    metrics = memory_metrics([MemoryTrace(torch.tensor([[10.0], [30.0]]), importance)] * 2)
    assert metrics["window_mean"] == metrics["window/layer1/head0"] == 20.0
    assert metrics["metaplasticity_mean"] == metrics["metaplasticity/layer0/head0"] == 2.0
    assert "metaplasticity_mean" not in memory_metrics([MemoryTrace(torch.ones(1, 1), None)])
    assert memory_metrics([MemoryTrace(None, None)] * 2) == {}


def test_finished_runs_are_returned_not_repeated(tiny_config):
    cfg = tiny_config()
    run(cfg)
    result_file = Path(cfg.run_dir) / "result.json"
    before = (result_file.read_bytes(), result_file.stat().st_mtime_ns)
    run(cfg)
    # What only concerns reporting does not make it another run.
    run(tiny_config("logger=wandb"))
    assert (result_file.read_bytes(), result_file.stat().st_mtime_ns) == before


def test_another_config_in_the_same_directory_is_an_error(tiny_config):
    cfg = tiny_config()
    run(cfg)
    before = (Path(cfg.run_dir) / "result.json").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"optimizer\.weight_decay: stored 0\.1, now 0\.2"):
        run(tiny_config("optimizer.weight_decay=0.2"))
    assert (Path(cfg.run_dir) / "result.json").read_bytes() == before
    run(tiny_config("optimizer.weight_decay=0.2", "variant=_wd"))


def test_an_unfinished_run_of_another_config_is_an_error_too(tiny_config, monkeypatch):
    cfg = tiny_config()
    fit = "palimpsa.training.run.TrainingRun.fit"
    monkeypatch.setattr(fit, lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run(cfg)
    failed = json.loads((Path(cfg.run_dir) / "result.json").read_text())
    assert failed["status"] == "failed"
    assert failed["error"] == "OSError: disk full"
    with pytest.raises(RunDirectoryError, match="holds a run of another config"):
        run(tiny_config("optimizer.weight_decay=0.2"))
    monkeypatch.undo()
    assert run(cfg)["status"] == "finished"


@pytest.mark.parametrize("content", ['{"status": "finis', "", "[1]"])
def test_a_damaged_result_is_named_and_left_alone(tiny_config, content):
    cfg = tiny_config()
    run(cfg)
    result_file = Path(cfg.run_dir) / "result.json"
    result_file.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"result\.json: got"):
        run(cfg)
    assert result_file.read_text() == content


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("palimpsa_d_nometa", ("model: ", "expected one of this run's palimpsa_d ", "mixer.metaplastic: stored False")),
        ("gla", ("model: ", "is a checkpoint of another model", "mixer._target_: stored 'palimpsa.mixers.GLA'")),
        ("palimpsa_d model.mixer.forgetting=normal", ("mixer.forgetting: stored 'normal', now 'small'",)),
    ],
)
def test_a_checkpoint_of_another_model_is_named_and_left_alone(tiny_config, other, named):
    cfg, other_cfg = tiny_config(), tiny_config(*f"model={other}".split(), "variant=_other")
    for one in (cfg, other_cfg):
        run(one)
    directory = RunDirectory(cfg.run_dir)
    directory.result_file.unlink()
    content = RunDirectory(other_cfg.run_dir).checkpoint_file.read_bytes()
    directory.checkpoint_file.write_bytes(content)
    with pytest.raises(RunDirectoryError) as caught:
        run(cfg)
    for part in (*named, str(directory.checkpoint_file)):
        assert part in str(caught.value)
    assert directory.checkpoint_file.read_bytes() == content
    assert not directory.result_file.exists()


def test_a_limit_that_is_infinite_is_stored_and_found_again(tiny_config):
    cfg = tiny_config("model=mamba2", "+model.mixer.step_size_limit=[0,inf]")
    result = run(cfg)
    assert result["config"]["model"]["mixer"]["step_size_limit"] == [0, "inf"]
    assert run(cfg) == result
    Path(cfg.run_dir, "result.json").unlink()
    assert run(cfg)["stages"] == result["stages"]


def test_a_run_on_a_gpu_that_is_not_there_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = tiny_config("trainer=gpu")
    with pytest.raises(ConfigError, match=r"^trainer=gpu: needs an NVIDIA GPU"):
        run(cfg)
    assert not Path(cfg.run_dir).exists()


def test_a_checkpoint_that_does_not_say_whose_it_is_is_told_by_its_weights(tiny_config):
    cfg = tiny_config()
    run(cfg)
    directory = RunDirectory(cfg.run_dir)
    directory.result_file.unlink()
    checkpoint = torch.load(directory.checkpoint_file, weights_only=True)
    # As an older tree wrote it.
    del checkpoint["model_config"], checkpoint["sha256"]
    torch.save(checkpoint, directory.checkpoint_file)
    assert run(cfg)["status"] == "finished"
    directory.result_file.unlink()
    del checkpoint["state_dict"]["model.blocks.1.mixer.skip"]
    torch.save(checkpoint, directory.checkpoint_file)
    with pytest.raises(RunDirectoryError, match=r"model\.blocks\.1\.mixer\.skip: stored nothing, now \[2\]"):
        run(cfg)


def test_a_directory_that_cannot_be_made_is_named(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="results_dir: cannot write to"):
        run(tiny_config(f"results_dir={tmp_path}/file"))


def time_of(file):
    """When it was written; None where it is not there, as for a moment while another takes its place."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("model", ["palimpsa_d", "mamba2"])
def test_a_run_killed_at_any_moment_resumes_to_the_identical_result(
    start_script, tiny_config, tiny_overrides, tmp_path, model
):
    """SIGKILL, twice in one run's life, against an undisturbed run."""
    longer = (
        "task.stages=[{seq_len:8,num_pairs:2,max_steps:120,in_figure:false},{seq_len:16,num_pairs:4,max_steps:200}]",
        "trainer.checkpoint_every=10",
        f"model={model}",
    )
    undisturbed = tiny_config(*longer)
    run(undisturbed)

    command = ("train.py", *tiny_overrides, *longer, f"results_dir={tmp_path}/killed")
    directory = tmp_path / "killed" / Path(undisturbed.run_dir).relative_to(tmp_path)
    checkpoint = directory / "checkpoints/last.ckpt"
    kills = 0
    for _ in range(2):
        seen = time_of(checkpoint)
        process = start_script(*command)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if time_of(checkpoint) not in (None, seen):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    assert not (directory / "result.json").exists()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 320
    last = start_script(*command)
    assert last.wait() == 0, last.err
    assert comparable(directory) == comparable(Path(undisturbed.run_dir))


def test_a_missing_mixer_argument_is_refused_before_anything_is_written(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.mixer\.num_head:"):
        run(tiny_config("+model.mixer.num_head=2"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("model", ["palimpsa_m", "gla"])
def test_bf16_autocast_trains_as_on_a_gpu(tiny_config, model):
    """The precision of trainer=gpu: fp32 weights, bf16 arithmetic, gradient clipping."""
    exact, rough = tiny_config(f"model={model}"), tiny_config(f"model={model}", "variant=_bf16")
    rough.trainer.precision = "bf16-mixed"
    losses = [pd.read_csv(Path(run(cfg) and cfg.run_dir) / "history.csv")["loss"].dropna() for cfg in (exact, rough)]
    assert not losses[0].equals(losses[1])
    assert losses[1].tolist() == pytest.approx(losses[0].tolist(), rel=0.02)


@pytest.mark.parametrize(
    ("model", "message"),
    # On a CPU the operator sees it first.
    [("gla", "the loss is"), ("palimpsa_d", "palimpsa: q contains NaN after step")],
)
def test_a_diverged_run_fails_and_keeps_what_it_had(tiny_config, model, message):
    cfg = tiny_config(f"model={model}", "optimizer.lr=1e30", "optimizer.gradient_clip=1e30", "optimizer.warmup_steps=8")
    with pytest.raises(FloatingPointError, match=rf"{message} .* a lower optimizer\.lr may help"):
        run(cfg)
    # NaN is no JSON.
    result = json.loads((Path(cfg.run_dir) / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["status"] == "diverged"
    assert result["error"].startswith("FloatingPointError")
    assert "Traceback" in result["traceback"]
    assert len(pd.read_csv(Path(cfg.run_dir) / "history.csv")) == result["metrics"]["history_rows"] > 0


@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_a_finished_result_survives_any_damage_around_it(tiny_config, name):
    cfg = tiny_config()
    run(cfg)
    file = Path(cfg.run_dir) / name
    content = file.read_bytes()
    file.write_bytes(content[:40] + b"\xff\xfe" + content[40:])
    damaged = {path.name: path.read_bytes() for path in Path(cfg.run_dir).glob("*.json")}
    with pytest.raises(RunDirectoryError, match=rf"{name}: got \d+ bytes that are not JSON"):
        run(cfg)
    assert damaged == {path.name: path.read_bytes() for path in Path(cfg.run_dir).glob("*.json")}


def test_a_directory_in_use_is_refused(tiny_config):
    cfg = tiny_config()
    with RunDirectory(cfg.run_dir).locked(), pytest.raises(RunDirectoryError, match="in use by another process"):
        run(cfg)
    assert run(cfg)["status"] == "finished"


def test_a_result_of_another_format_is_refused(tiny_config):
    cfg = tiny_config()
    run(cfg)
    file = Path(cfg.run_dir) / "result.json"
    file.write_text(file.read_text().replace('"format": 3', '"format": 4'))
    with pytest.raises(RunDirectoryError, match="format is 4, expected a complete result of format 3"):
        run(cfg)


def test_a_run_that_cannot_write_its_curves_fails_in_one_place(tiny_config, monkeypatch):
    cfg = tiny_config()
    monkeypatch.setattr(
        "palimpsa.training.history.History.write", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        run(cfg)
    assert not (Path(cfg.run_dir) / "result.json").exists()
    monkeypatch.undo()
    assert run(cfg)["status"] == "finished"


def test_throughput_counts_training_time_only(tiny_config):
    """Tokens of a row over its tokens a second add up to no more than the run's wall time, also after a resume."""
    cfg = tiny_config("trainer.checkpoint_every=4")
    run(cfg)
    directory = RunDirectory(cfg.run_dir)
    directory.result_file.unlink()
    resumed = run(cfg)
    history = pd.read_csv(directory.history_file)
    rates = history.loc[history["step"] > 16, "tokens_per_s"].dropna()
    assert (rates > 0).all()
    assert (64 / rates).sum() <= resumed["provenance"]["wall_time_s"]


def test_what_changes_no_number_makes_no_other_run(tiny_config):
    first = run(tiny_config())
    again = run(tiny_config("task.sweep.seeds='1,2'", "model.label=Renamed", "trainer.checkpoint_every=7"))
    assert again == first
