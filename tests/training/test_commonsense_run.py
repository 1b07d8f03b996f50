"""Pretraining end to end on a CPU: what a run records, that a killed one goes on, and who its data are."""

import json
import math
import os
import signal
import time
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import plain, typed
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.identity import config_hash, identity
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.sweeps.sweep import Sweep
from palimpsa.tasks.build import build_task
from palimpsa.tasks.data_digests import with_data_digests
from palimpsa.training.preflight import check_run
from palimpsa.training.run import TrainingRun, run

SIZES = (
    "task=commonsense",
    "task.vocab_size=32",
    "task.context=16",
    "task.tokens_per_step=128",
    "task.num_steps=12",
    "task.warmup_steps=2",
    "task.validation_every=5",
    "task.validation_tokens=200",
    "scale.d_model=16",
    "scale.num_heads=2",
    "scale.head_k_dim=4",
    "scale.head_v_dim=4",
    "trainer.log_every=1",
    "trainer.probe_every=4",
    "trainer.checkpoint_every=4",
    "trainer.progress_bar=false",
    "logger=csv",
)


@pytest.fixture
def overrides(tmp_path, write_text):
    """The command line of a run of 12 steps: `overrides("seed=2")`."""
    data = write_text(tmp_path / "text")
    return lambda *more: [*SIZES, f"task.data={data}", f"results_dir={tmp_path}", *more]


@pytest.fixture
def commonsense(overrides, compose_config):
    """Its config."""
    return lambda *more: typed(compose_config(*overrides(*more)))


def directory_of(config, results_dir: Path) -> Path:
    return results_dir / Path(config.run_dir).relative_to(config.results_dir)


def curves(directory: Path) -> pd.DataFrame:
    return pd.read_csv(directory / "history.csv").drop(columns=["tokens_per_s", "data_wait"])


def test_a_run_is_trained_and_recorded(commonsense, capsys):
    config = commonsense()
    result = run(config)
    assert "finished, validation loss " in capsys.readouterr().err
    assert result["status"] == "finished"
    (stage,) = result["stages"]
    assert (stage["steps"], stage["ended_by"], stage["context"]) == (12, "cap", 16)
    assert 1 < stage["validation_perplexity_per_byte"] < stage["validation_perplexity"] < 40
    assert list(stage["validation_loss_by_position"]) == ["1", "2", "3to4", "5to8", "9to16"]
    assert "33to64" in stage["validation_loss_by_length"]
    history = curves(Path(config.run_dir)).set_index("step")
    assert history.index[history["validation_loss"].notna()].tolist() == [5, 10, 12]
    assert history["validation_loss/position3to4"].notna().sum() == 3
    assert history["loss"].iloc[-1] < history["loss"].dropna().iloc[0]
    assert history["window_mean"].notna().sum() == 4
    assert result["config"]["task"]["train_digest"] == build_task(config.task, 1).shards["train"].digest
    assert json.loads((Path(config.run_dir) / "result.json").read_text()) == result
    # Not trained again.
    assert run(config) == result


def test_that_the_tokenizer_is_not_here_is_said_once(commonsense, monkeypatch, capsys):
    monkeypatch.setattr("palimpsa.tasks.commonsense.check_own_tokenizer", lambda manifest: "tokenizer: gone")
    for seed in (1, 2):
        run(commonsense("task.num_steps=1", f"seed={seed}"))
    told = [line for line in capsys.readouterr().err.splitlines() if "not held to the golden ids" in line]
    assert len(told) == 1
    assert "text/train: its tokenizer" in told[0]
    assert "(tokenizer: gone)" in told[0]


@pytest.mark.parametrize("documents", ["run_on", "reset_every_context"])
def test_the_other_ways_to_pack_train_too(commonsense, documents):
    config = commonsense(f"task.documents={documents}", "task.contexts_per_row=2", "task.num_steps=3")
    assert run(config)["stages"][0]["validation_loss"] > 0


def test_a_run_that_is_killed_goes_on_with_the_very_next_token(start_script, commonsense, overrides, tmp_path):
    """SIGKILL, twice in one run's life, in different epochs, against an undisturbed run: every loss is equal."""
    longer = ("task.num_steps=120", "trainer.checkpoint_every=10", "task.validation_every=60")
    undisturbed = commonsense(*longer)
    expected = run(undisturbed)
    killed = tmp_path / "killed"
    command = ("train.py", *overrides(*longer), f"results_dir={killed}")
    directory = directory_of(undisturbed, killed)
    checkpoint = directory / "checkpoints/last.ckpt"
    for _ in range(2):
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        process = start_script(*command)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != seen:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL
    assert not (directory / "result.json").exists()
    assert 0 < torch.load(checkpoint, weights_only=True)["global_step"] < 120
    last = start_script(*command)
    assert last.wait() == 0, last.err
    result = json.loads((directory / "result.json").read_text())
    assert (result["stages"], result["config_hash"]) == (expected["stages"], expected["config_hash"])
    pd.testing.assert_frame_equal(curves(directory), curves(Path(undisturbed.run_dir)), check_exact=True)


def test_two_processes_train_as_one_and_one_goes_on_where_two_were(
    start_script, start_ranks, run_ranks, commonsense, overrides, tmp_path
):
    """DDP on gloo: the losses of one process to 1e-5, though the shares of a step differ in targets."""
    longer = ("seed=2", "task.num_steps=32", "trainer.checkpoint_every=8")
    alone = commonsense(*longer)
    run(alone)
    command = ("train.py", *overrides(*longer, f"results_dir={tmp_path}/shared"))
    directory, expected = directory_of(alone, tmp_path / "shared"), curves(Path(alone.run_dir))
    checkpoint = directory / "checkpoints/last.ckpt"
    ranks = start_ranks(2, *command)
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and ranks[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    # They have the lock until they are gone.
    assert [rank.wait() for rank in ranks] == [-signal.SIGKILL] * 2
    assert torch.load(checkpoint, weights_only=True)["global_step"] % 8 == 0
    # On one process, from the checkpoint that two wrote.
    resumed = start_script(*command)
    assert resumed.wait() == 0, resumed.err
    pd.testing.assert_frame_equal(curves(directory), expected, rtol=1e-5, atol=0)
    # And on two from the start to the end, each with its part of the weights.
    run_ranks(2, *command[:-1], f"results_dir={tmp_path}/sharded", "trainer.strategy=fsdp")
    pd.testing.assert_frame_equal(curves(directory_of(alone, tmp_path / "sharded")), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_in_bf16_to_its_rounding(run_ranks, commonsense, overrides, tmp_path, strategy):
    # At a rate at which what is rounded otherwise does not grow.
    options = ("trainer.precision=bf16-mixed", "optimizer.lr=1e-3", "task.num_steps=20")
    alone = commonsense(*options)
    run(alone)
    own = (*overrides(*options), f"results_dir={tmp_path}/shared", f"trainer.strategy={strategy}")
    run_ranks(2, "train.py", *own)
    # By position and length they are over a few tokens each.
    losses = ["loss", "validation_loss"]
    found, expected = curves(directory_of(alone, tmp_path / "shared"))[losses], curves(Path(alone.run_dir))[losses]
    assert found["loss"].notna().sum() == 20
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=0)


# Property 4: a changed file, tokenizer or packing under the same name is an error that names it.
def test_the_data_are_part_of_a_runs_identity_and_their_path_is_not(commonsense, tmp_path, write_text, write_shards):
    config = commonsense()
    complete = with_data_digests(config)
    run(config)
    known = identity(plain(complete))
    assert {"task.train_digest", "task.validation_digest", "task.tokenizer_digest", "task.context"} <= set(known)
    assert not {"task.data", "task.verify"} & set(known)
    # The same text elsewhere is the same run.
    moved = commonsense(f"task.data={write_text(tmp_path / 'moved')}")
    assert config_hash(plain(with_data_digests(moved))) == config_hash(plain(complete))
    assert run(moved)["status"] == "finished"
    for split, other in (("train", 1), ("validation", 2)):
        text = write_text(tmp_path / "text", seed=other)
        write_text(tmp_path / "same")
        (tmp_path / "same" / split).rename(tmp_path / f"old_{split}")
        (text / split).rename(tmp_path / "same" / split)
        with pytest.raises(RunDirectoryError, match=rf"task\.{split}_digest: stored '[0-9a-f]{{64}}', now '"):
            run(commonsense(f"task.data={tmp_path / 'same'}"))
    for split in ("train", "validation"):
        write_shards(tmp_path / "words" / split, [[1] * 200], tokenizer="1" * 64)
    with pytest.raises(RunDirectoryError, match=r"task\.tokenizer_digest: stored '0{64}', now '1{64}'"):
        run(commonsense(f"task.data={tmp_path / 'words'}"))
    for change in ("task.documents=run_on", "task.context=8", "task.contexts_per_row=2"):
        key = change.partition("=")[0].replace(".", r"\.")
        with pytest.raises(RunDirectoryError, match=rf"holds a run of another config \({key}: stored"):
            run(commonsense(f"task.data={write_text(tmp_path / 'again')}", change))


def test_a_config_that_names_its_data_is_held_to_them(commonsense, tmp_path):
    digest = with_data_digests(commonsense()).task.train_digest
    assert with_data_digests(commonsense(f"task.train_digest={digest}")).task.train_digest == digest
    with pytest.raises(
        ConfigError, match=rf"task\.train_digest: got abc, expected {digest}, that of .*text/train; null"
    ):
        run(commonsense("task.train_digest=abc"))
    assert not (tmp_path / "runs").exists()


def test_a_step_that_does_not_divide_between_ranks_is_refused(commonsense, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "3", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"a step of 8 examples \(L 16\) for 3 processes, expected a multiple"):
        run(commonsense())


def test_a_sweep_over_learning_rates_is_planned(overrides, tmp_path):
    sweep = plan_command_line(["+sweep=learning_rate", *overrides()], multirun=False)
    assert isinstance(sweep, Sweep)
    assert [job.directory.parts[-2:] for job in sweep.jobs] == [("lr_0.005", "seed_1"), ("lr_0.01", "seed_1")]
    assert all(job.config["task"]["train_digest"] for job in sweep.jobs)
    with pytest.raises(ConfigError, match=r"task\.data: got 'absent', expected a folder"):
        plan_command_line(["+sweep=learning_rate", *overrides("task.data=absent")], multirun=False)


def test_a_sweep_chooses_the_rate_with_the_lowest_validation_loss(start_script, overrides, tmp_path):
    """In two phases: both rates on the first seed, the better one on the second."""
    rates = ("optimizer.lr=1e-6,3e-2", "seed=1,2", "hydra.sweeper.selection_seeds=1")
    done = start_script("train.py", "-m", *overrides(*rates))
    assert done.wait() == 0, done.err
    losses = {}
    for path in sorted((tmp_path / "runs").rglob("result.json")):
        losses[path.parts[-3:-1]] = json.loads(path.read_text())["stages"][0]["validation_loss"]
    assert set(losses) == {("lr_1e-06", "seed_1"), ("lr_0.03", "seed_1"), ("lr_0.03", "seed_2")}
    lowest = losses["lr_0.03", "seed_1"]
    assert lowest < losses["lr_1e-06", "seed_1"]
    assert f"Palimpsa-D: learning rate 0.03 of 2 rates, validation loss {lowest:.4f} on 1 seed" in done.out
    assert "Learning rates: Pretraining of language models" in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert ["0.03", "best", "2/2", f"{lowest:.4f}"] in lines
    assert ["1e-06", "1/1", f"{losses['lr_1e-06', 'seed_1']:.4f}"] in lines
    assert "best at the edge of the rates tried" in done.out


def spoil_parameter(model):
    with torch.no_grad():
        model.get_parameter("blocks.1.mixer.o_proj.weight")[0, 0] = math.nan


def spoil_output(model):
    model.get_submodule("blocks.1.mixer").register_forward_hook(lambda _, __, output: output * math.inf)


def spoil_operand(model):
    # The operator of block 1, which looks at its operands on a CPU, is the first to say so.
    model.get_submodule("blocks.0.mixer").register_forward_hook(lambda _, __, output: output * math.nan)


def spoil_gradient(model):
    model.get_parameter("blocks.1.mixer.k_proj.weight").register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (spoil_parameter, "the loss is nan at step 6, first in the parameter blocks.1.mixer.o_proj.weight"),
        (spoil_output, "the loss is nan at step 6, first in the output of blocks.1.mixer"),
        (spoil_operand, "contains NaN at step 6, first in the output of blocks.0.mixer"),
        (spoil_gradient, "the gradient's norm is nan at step 6, first in the gradient of blocks.1.mixer.k_proj.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_stops_before_the_step_that_is_no_number_and_names_step_batch_and_layer(commonsense, spoil, where):
    config = commonsense("trainer.accumulate=2")
    task = check_run(with_data_digests(config))
    training = TrainingRun(config, task, RunDirectory(config.run_dir))

    class SpoilAtSix(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 12:
                spoil(pl_module.model)

    with pytest.raises(FloatingPointError) as raised:
        training.fit([SpoilAtSix()])
    assert where in str(raised.value)
    assert task.describe_batch(task.stages[0], 6) in str(raised.value)
    kept = torch.load(training.directory.checkpoint_file, weights_only=True)
    assert kept["global_step"] == 4
    assert all(bool(weight.isfinite().all()) for weight in kept["state_dict"].values())
