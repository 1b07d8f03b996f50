"""scripts/calibrate.py: what it writes of trained runs, how it goes on, and what it refuses, each in one line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SMALL = ("calibration.num_examples=12", "calibration.batch_size=5", "calibration.num_bins=3", "device=cpu")


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def calibrate(*arguments: object) -> int:
    from palimpsa.evaluation.calibration.command import calibrate_main

    return calibrate_main([str(one) for one in arguments])


@pytest.fixture
def run_and_measure(tmp_path):
    """The command, with results below tmp_path."""
    return lambda *arguments: calibrate(*SMALL, *arguments, f"results_dir={tmp_path}/calibration")


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    from palimpsa.analysis.calibration.rows import read_bins, read_calibration

    return read_calibration(folder / "calibration"), read_bins(folder / "calibration")


def test_runs_are_measured_at_each_load_drawn_and_not_measured_again(trained, run_and_measure, tmp_path, capsys):
    first, second = trained("palimpsa_d"), trained("palimpsa_m_scalar")
    assert run_and_measure(first, second) == 0
    assert "Palimpsa-D lr 0.00464 seed 1, L 16, 4 pairs: accuracy" in capsys.readouterr().out
    rows, bins = read(tmp_path)
    # A stage that is not tested is no load; per model variances of two layers and their sum, twice, and three others.
    assert set(zip(rows["model"], rows["seq_len"], rows["num_pairs"], strict=True)) == {
        ("palimpsa_d", 16, 4),
        ("palimpsa_m_scalar", 16, 4),
    }
    assert len(rows) == 2 * (2 * 3 + 3)
    assert set(rows["num_queries"]) == {12 * 4}
    assert set(rows["steps"]) == {19}
    assert rows.groupby("model")["accuracy"].nunique().eq(1).all()
    known = rows.dropna(subset=["auroc_low"])
    assert ((known["auroc_low"] <= known["auroc"]) & (known["auroc"] <= known["auroc_high"])).all()
    assert rows.loc[rows["signal"] == "confidence", "calibration_error"].notna().all()
    assert bins.groupby(["model", "signal", "layer"])["count"].sum().eq(48).all()
    assert (bins["num_wrong"] / bins["count"]).between(bins["low"], bins["high"]).all()
    folder = tmp_path / "calibration"
    assert (folder / "calibration_laptop.png").stat().st_size > 10_000
    table = (folder / "calibration_laptop.md").read_text()
    assert "laptop scale: demonstrates the pipeline" in table
    assert "| Palimpsa-M, scalar | 16 | 4 | 1 |" in table
    written = {path: path.read_bytes() for path in folder.glob("*.csv")}
    assert run_and_measure(first, second) == 0
    assert "Palimpsa-D lr 0.00464 seed 1: measured before" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.glob("*.csv")} == written


def test_the_order_of_runs_changes_nothing_but_dates(trained, run_and_measure, tmp_path):
    places = [trained("palimpsa_d"), trained("palimpsa_d", "seed=2")]
    assert run_and_measure(*places) == 0
    first = [one.drop(columns="date", errors="ignore") for one in read(tmp_path)]
    for path in (tmp_path / "calibration").glob("*.csv"):
        path.unlink()
    for place in reversed(places):
        assert run_and_measure(place) == 0
    for one, other in zip(first, read(tmp_path), strict=True):
        pd.testing.assert_frame_equal(one, other.drop(columns="date", errors="ignore"))


def test_other_loads_and_a_checkpoint_file_are_taken(trained, run_and_measure, tmp_path):
    checkpoint = trained("palimpsa_d") / "checkpoints/last.ckpt"
    # Of 32 tokens, no 128 can be distinct.
    assert run_and_measure(checkpoint, "calibration.loads=[[8,2],[128,2]]") == 2
    assert run_and_measure(checkpoint, "calibration.loads=[[8,2],[24,3]]") == 0
    rows, _ = read(tmp_path)
    assert sorted(set(zip(rows["seq_len"], rows["num_pairs"], strict=True))) == [(8, 2), (24, 3)]


def test_rows_of_another_revision_or_way_are_refused_until_all_is_measured_anew(
    trained, run_and_measure, tmp_path, capsys, monkeypatch
):
    place = trained("palimpsa_d")
    monkeypatch.setenv("PALIMPSA_REVISION", "first")
    assert run_and_measure(place) == 0
    assert run_and_measure(place, "calibration.num_bins=4") == 2
    assert "num_bins of scale laptop is 3 there and 4 now" in capsys.readouterr().err
    monkeypatch.setenv("PALIMPSA_REVISION", "second")
    assert run_and_measure(place) == 2
    assert "git_revision of scale laptop is first there and second now" in capsys.readouterr().err
    assert set(read(tmp_path)[0]["git_revision"]) == {"first"}
    assert run_and_measure(place, "fresh=true") == 0
    assert set(read(tmp_path)[0]["git_revision"]) == {"second"}
    # The same command again forgets nothing.
    assert run_and_measure(place, "fresh=true") == 0
    assert "measured before" in capsys.readouterr().out


def test_a_run_that_has_trained_on_is_measured_again(trained, run_and_measure, tmp_path, capsys):
    place = trained("palimpsa_d")
    assert run_and_measure(place) == 0
    path = tmp_path / "calibration/calibration.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows.assign(steps="7").to_csv(path, index=False)
    assert run_and_measure(place) == 0
    assert "measured before" not in capsys.readouterr().out
    assert set(read(tmp_path)[0]["steps"]) == {19}


def test_what_cannot_be_measured_is_told_before_anything_is(trained, run_and_measure, tmp_path, capsys):
    good = trained("palimpsa_d")
    without, other = trained("palimpsa_d_nometa"), trained("gla")
    empty = tmp_path / "empty"
    empty.mkdir()
    unstarted = tmp_path / "unstarted"
    unstarted.mkdir()
    (unstarted / "config.json").write_bytes((good / "config.json").read_bytes())
    for place, told in (
        (tmp_path / "nowhere", f"CHECKPOINT: got '{tmp_path}/nowhere', expected the directory of a run"),
        (empty, "got no config.json in it, expected a run's directory"),
        (unstarted, "last.ckpt: not there, expected the last checkpoint of a run"),
        (without, "got D w/o Meta, without importances"),
        (other, "got GLA, whose GLA has no variance"),
    ):
        assert run_and_measure(good, place) == 2, place
        error = capsys.readouterr().err
        assert told in error.replace("\n", " "), error
        assert error.count("error:") == 1
    assert not (tmp_path / "calibration").exists()


def test_a_run_on_text_is_refused_by_its_task(run_and_measure, tmp_path, capsys, write_text, compose_config):
    from palimpsa.config.schema import typed
    from palimpsa.training.run import run

    config = typed(
        compose_config(
            *("task=commonsense", "model=lm/palimpsa_d_tiny", f"task.data={write_text(tmp_path / 'text')}"),
            *("model.d_model=16", "model.num_layers=1", "model.channel_width=16", "task.vocab_size=32"),
            *("task.context=16", "task.tokens_per_step=32", "task.num_steps=2", "task.num_tokens=null"),
            *("task.validation_every=2", "task.validation_tokens=64", "logger=csv", "trainer.progress_bar=false"),
            f"results_dir={tmp_path}",
        )
    )
    run(config)
    assert run_and_measure(config.run_dir) == 2
    error = capsys.readouterr().err
    assert "trained on commonsense, whose answers cannot be counted one by one, expected a run of mqar" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["calibration.num_examples=12"], "CHECKPOINT: got none, expected the directory of a run, or several"),
        (["run", "--num-examples", "3"], "--num-examples: got an option, expected KEY=VALUE"),
        (["run", "calibration.num_examples=1"], "calibration.num_examples: got 1, expected >= 2"),
        (["run", "calibration.num_exmaples=3"], "calibration.num_exmaples"),
        (
            ["run", "calibration.loads=[[16,4],[8,2],[16,4]]"],
            "calibration.loads: got [[16, 4], [8, 2], [16, 4]], expected each load once",
        ),
        (
            ["run", "calibration.loads=[[16]]"],
            r"calibration.loads: got [[16]], expected null or a list of [length, pai",
        ),
        (["run", "device=tpu"], "device: got 'tpu', expected one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, told, tmp_path, capsys):
    assert calibrate(*arguments, f"results_dir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("is_wrong", "word"), [(True, "right"), (False, "wrong")])
def test_where_all_answers_are_alike_the_line_says_that_there_is_no_auroc(is_wrong, word):
    from palimpsa.evaluation.calibration.measure import _line, _score_rows
    from palimpsa.evaluation.calibration.queries import CONFIDENCE, AnsweredQueries, Signal

    numbers = np.arange(4.0)
    found = AnsweredQueries(np.full(4, is_wrong), numbers, np.arange(4), {Signal(CONFIDENCE): numbers})
    told = _line(found, _score_rows(found, 2))
    assert told == f"accuracy {0 if is_wrong else 100:.1f}%; no AUROC, since no answer is {word}"


def test_help_shows_what_to_type(capsys):
    assert calibrate("-h") == 0
    assert "calibrate.py train +experiment=calibration" in capsys.readouterr().out
    assert calibrate() == 2


def test_train_trains_measures_and_goes_on(start_script, tmp_path, tiny_overrides):
    # The stages come with the task of the sweep.
    own = [one for one in tiny_overrides if not one.startswith("trainer.checkpoint_every")]
    words = [
        *("train", "+experiment=calibration", "scale=laptop", "trainer=cpu", *own),
        *("model=palimpsa_d", "seed=1,2", f"results_dir={tmp_path}/calibration", *SMALL),
    ]
    done = start_script("calibrate.py", *words)
    assert done.wait() == 0, done.err
    rows, _ = read(tmp_path)
    assert set(rows["seed"]) == {1, 2}
    assert set(rows["task"]) == {"mqar_calibration"}
    assert set(rows["steps"]) == {19}
    again = start_script("calibrate.py", *words)
    assert again.wait() == 0, again.err
    assert "Palimpsa-D lr 0.00464 seed 2: measured before" in again.out
