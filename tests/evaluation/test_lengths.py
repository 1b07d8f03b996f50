"""Finished runs at other lengths: what is measured, that it goes on where it stopped, and what is refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.analysis.collect.length_files import add_lengths, read_lengths_csv
from palimpsa.analysis.recipe.lengths_table import beyond_table, interference_table
from palimpsa.config.errors import RunDirectoryError
from palimpsa.evaluation.lengths.command import evaluate_lengths_main
from palimpsa.runs.schema import ResultError


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def run(config):
    from palimpsa.training.run import run as run_it

    return run_it(config)


@pytest.fixture
def runs(tiny_config, tmp_path):
    """Trains runs of 19 steps that keep their weights: `runs("model=gla", ...)`; returns their folder."""

    def train(*overrides: str, models: str = "palimpsa_d,palimpsa_d_nometa"):
        for model in models.split(","):
            run(tiny_config(f"model={model}", "trainer.keep_final=true", *overrides))
        return tmp_path / "runs"

    return train


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_the_trained_length_it_is_what_the_run_recalls(runs, tmp_path, dtype):
    """Of the same examples, whose address has the stage in it: a run of one stage."""
    from palimpsa.evaluation.lengths.measure import load_weights, read_run

    stage = "task.stages=[{seq_len:16,num_pairs:4,max_steps:12}]"
    folder, out = runs(stage, f"optimizer.dtype={dtype}"), tmp_path / "lengths.csv"
    assert evaluate_lengths_main([str(folder), "--lengths", "16:4,16:2,24:4", "--out", str(out)]) == 0
    rows = read_lengths_csv(out)
    assert set(rows["metric"]) == {"accuracy", "loss", *(f"accuracy/age{i}" for i in range(4))}
    assert len(rows.drop_duplicates(["model", "seq_len", "num_pairs"])) == 2 * 3
    for directory in folder.glob("*/*/*/*/*"):
        found = read_run(directory)
        assert next(load_weights(found, torch.device("cpu")).parameters()).dtype == getattr(torch, dtype)
        (result,) = pd.read_json(directory / "result.json", typ="series")["stages"]
        own = rows.loc[(rows["model"] == found.place["model"]) & (rows["seq_len"] == 16) & (rows["num_pairs"] == 4)]
        values = dict(zip(own["metric"], own["value"], strict=True))
        assert values["accuracy"] == result["test_accuracy"]
        assert values["loss"] == pytest.approx(result["test_loss"])


def test_the_same_command_measures_what_is_missing(runs, tmp_path, monkeypatch, capsys):
    from palimpsa.evaluation.lengths import measure as module

    folder, out = runs(models="palimpsa_d"), tmp_path / "lengths.csv"
    assert evaluate_lengths_main([str(folder), "--lengths", "16:4", "--out", str(out)]) == 0
    before = out.read_text()
    own, calls = module.measure, []

    def counted(run, model, length):
        calls.append(length)
        if length == (24, 4) and len(calls) == 1:
            raise KeyboardInterrupt
        return own(run, model, length)

    monkeypatch.setattr(module, "measure", counted)
    command = [str(folder), "--lengths", "16:4,24:4,16:2", "--out", str(out)]
    assert evaluate_lengths_main(command) == 130
    assert out.read_text() == before
    assert evaluate_lengths_main(command) == 0
    assert calls == [(24, 4), (24, 4), (16, 2)]
    after = out.read_text()
    assert set(before.splitlines()) < set(after.splitlines())
    assert evaluate_lengths_main(command) == 0
    assert out.read_text() == after
    assert "goes on where it stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--lengths", "16"), "--lengths: got '16', expected TOKENS:PAIRS"),
        (("--lengths", "0:0"), "--lengths: got '0:0', expected tokens and pairs >= 1"),
        (("--lengths", "16:4,16:4"), "--lengths: got '16:4,16:4', expected each once"),
        (("--lengths", "16:5"), "seed_1: task.stages[0].num_pairs: got 5, expected 1 <= num_pairs <= seq_len / 4 = 4"),
        (("--task", "mqar_kept"), "got no finished run of task mqar_kept below"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(runs, tmp_path, capsys, arguments, words):
    out = tmp_path / "lengths.csv"
    assert evaluate_lengths_main([str(runs(models="gla")), "--out", str(out), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_run_that_kept_no_weights_is_told_how(tiny_config):
    from palimpsa.evaluation.lengths.measure import load_weights, read_run

    config = tiny_config("model=gla")
    run(config)
    with pytest.raises(RunDirectoryError, match=r"which trainer\.keep_final=true has a run keep"):
        load_weights(read_run(Path(config.run_dir)), torch.device("cpu"))


def test_runs_that_did_not_finish_or_kept_no_weights_are_left_out(runs, tmp_path, capsys):
    """A run that diverged has weights too, of somewhere on the way."""
    folder, out = runs(models="palimpsa_d,palimpsa_d_nometa,gla"), tmp_path / "lengths.csv"
    (diverged,) = folder.glob("*/*/palimpsa_d/*/*")
    result = json.loads((diverged / "result.json").read_text())
    (diverged / "result.json").write_text(json.dumps({**result, "status": "diverged"}))
    (bare,) = folder.glob("*/*/gla/*/*")
    shutil.rmtree(bare / "checkpoints")
    command = [str(folder), "--lengths", "16:4", "--out", str(out)]
    assert evaluate_lengths_main(command) == 3
    assert set(read_lengths_csv(out)["model"]) == {"palimpsa_d_nometa"}
    assert f"left out: {bare}: got no checkpoint in it" in capsys.readouterr().err
    assert evaluate_lengths_main([str(bare), *command[1:]]) == 2
    assert evaluate_lengths_main([str(diverged), *command[1:]]) == 2


def test_a_length_that_only_some_tasks_have_room_for_is_tested_in_those(runs, tmp_path, capsys):
    stage = "task.stages=[{seq_len:16,num_pairs:2,max_steps:2}]"
    runs(stage, models="gla")
    folder = runs("task=mqar_interference", stage, models="gla")
    out = tmp_path / "lengths.csv"
    assert evaluate_lengths_main([str(folder), "--lengths", "16:4,16:2", "--out", str(out)]) == 0
    rows = read_lengths_csv(out)
    found = set(rows[["task", "num_pairs"]].itertuples(index=False, name=None))
    assert found == {("mqar_curriculum", 2), ("mqar_curriculum", 4), ("mqar_interference", 2)}
    said = capsys.readouterr().out
    assert "left out: 16:4 of " in said
    assert "num_pairs: got 4, of which 2 are written twice" in said


def test_help_and_a_wrong_option_say_usage_once(capsys):
    assert evaluate_lengths_main(["--help"]) == 0
    with pytest.raises(SystemExit):
        evaluate_lengths_main(["runs", "--length", "16:4"])
    said = capsys.readouterr()
    assert said.out.count("usage:") == said.err.count("usage:") == 1
    assert max(map(len, said.out.splitlines())) <= 120


def row(**changes) -> dict:
    shared = {"task": "mqar_kept", "scale": "h200", "model": "palimpsa_d", "label": "Palimpsa-D", "lr": 4.64e-3}
    place = {"seed": 1, "seq_len": 2_048, "num_pairs": 512, "metric": "accuracy", "value": 0.5, "config_hash": "a"}
    return {**shared, **place, "device": "NVIDIA H200", "git_revision": "b", "date": "2026-11-30", **changes}


def test_tables_say_what_was_measured_and_before_that_how(tmp_path):
    (tmp_path / "recipe").mkdir()
    assert "Not run yet: `scripts/train.py +experiment=recipe_beyond`" in beyond_table(tmp_path)
    assert "+experiment=recipe_interference" in interference_table(tmp_path)
    seeds = [row(seed=seed, value=value, config_hash=str(seed)) for seed, value in ((1, 0.5), (2, 0.7))]
    other = {"task": "mqar_interference", "seq_len": 1_024, "num_pairs": 128, "config_hash": "c"}
    kinds = [row(**other, metric=name) for name in ("accuracy", "accuracy/rare_overwritten", "loss")]
    add_lengths(tmp_path / "recipe" / "lengths.csv", [*kinds, *seeds])
    assert "| model | seeds | L 2,048, 512 pairs |" in beyond_table(tmp_path)
    assert "| Palimpsa-D | 2 | 60.0 ± 14.1 |" in beyond_table(tmp_path)
    assert "| model | seeds | all queries | rare, overwritten |" in interference_table(tmp_path)


def test_tables_mix_no_rates_no_lengths_and_no_numbers_of_seeds(tmp_path):
    (tmp_path / "recipe").mkdir()
    kept = [row(seed=seed, value=0.5, config_hash=str(seed)) for seed in (1, 2)]
    half_done = row(seed=1, seq_len=512, num_pairs=128, value=0.8, config_hash="1")
    other_rate = [row(seed=seed, lr=1e-2, value=0.1, config_hash=f"fast {seed}") for seed in (1, 2)]
    shared = {"task": "mqar_interference", "config_hash": "c"}
    lengths = ((1_024, 128, 0.9), (2_048, 128, 0.2), (2_048, 256, 0.1), (1_024, 64, 0.3))
    kinds = [row(**shared, seq_len=seq_len, num_pairs=pairs, value=value) for seq_len, pairs, value in lengths]
    add_lengths(tmp_path / "recipe" / "lengths.csv", [*kept, half_done, *other_rate, *kinds])
    assert "| Palimpsa-D, rate 0.00464 | 2 | 80.0 (1 seed) | 50.0 ± 0.0 |" in beyond_table(tmp_path)
    assert "| Palimpsa-D, rate 0.01 | 2 | - | 10.0 ± 0.0 |" in beyond_table(tmp_path)
    assert "| Palimpsa-D | 1 | 90.0 |" in interference_table(tmp_path)
    assert "At L 1,024 with 128 pairs" in interference_table(tmp_path)
    assert "Only some of its runs: 4 of 16." in beyond_table(tmp_path).replace("\n", " ")
    assert "Only some of its runs: 1 of 8." in interference_table(tmp_path).replace("\n", " ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ",0.5,",
            ",,",
        ),
        ("accuracy", "accuracy,more"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, words):
    path = tmp_path / "lengths.csv"
    add_lengths(path, [row()])
    path.write_text(path.read_text().replace(change, words))
    with pytest.raises(ResultError, match=str(path)):
        read_lengths_csv(path)


def test_a_number_that_another_process_has_measured_leaves_the_file_as_it_is(tmp_path):
    path = tmp_path / "lengths.csv"
    add_lengths(path, [row()])
    before = path.read_text()
    with pytest.raises(ResultError, match="a, 2048, 512, accuracy twice"):
        add_lengths(path, [row(seq_len=512), row()])
    assert path.read_text() == before
    assert len(read_lengths_csv(path)) == 1
    path.write_text(before + before.splitlines()[1] + "\n")
    with pytest.raises(ResultError, match="twice"):
        read_lengths_csv(path)
