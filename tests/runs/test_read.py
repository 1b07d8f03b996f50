"""Reading run directories and CSV files: every error names the file, what was found and expected."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from palimpsa.runs.identity import config_hash, protocol_hash, upgraded
from palimpsa.runs.read import (
    find_run_dirs,
    head_columns,
    read_curves_csv,
    read_history,
    read_run_dir,
    read_runs_csv,
)
from palimpsa.runs.rows import HistoryFacts
from palimpsa.runs.schema import RUN_COLUMNS, ResultError


def test_run_dir_becomes_one_row_a_stage(add_run):
    folder = add_run(model="gla", lr=2.15e-3, seed=3, validation=[0.9, 0.8], test=[0.875, 0.75])
    frame = read_run_dir(folder)
    assert list(frame.columns) == list(RUN_COLUMNS)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == RUN_COLUMNS
    assert frame["seq_len"].tolist() == [16, 32, 64]
    assert frame["test_accuracy"].tolist()[1:] == [0.875, 0.75]
    assert np.isnan(frame["test_accuracy"][0])
    assert frame["test_accuracy_by_age"].isna().tolist() == [True, False, False]
    assert frame["test_accuracy_by_age"][1] == "0.875;;0.5;0.25"
    assert (frame["lr"] == 2.15e-3).all()
    assert (frame["run_seq_len"] == 0).all()
    assert frame["versions"][0] == "python=3.11.7;torch=2.13.0"


def test_failed_run_without_stages_is_one_row(add_run):
    folder = add_run(status="failed", validation=[], lengths=[])
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result["stages"] = []
    result["run"]["state_size"] = None
    result["provenance"]["git_revision"] = None
    path.write_text(json.dumps(result))
    frame = read_run_dir(folder)
    assert len(frame) == 1
    assert frame["status"][0] == "failed"
    assert frame["error"][0] == "RuntimeError: the loss is nan"
    assert frame[["stage", "seq_len", "state_size", "git_revision"]].isna().all(axis=None)


def test_a_run_that_diverged_says_so_in_whatever_format_it_was_written(add_run):
    path = add_run(status="failed", validation=[], lengths=[]) / "result.json"
    result = json.loads(path.read_text())
    assert result["format"] == 1
    result["error"] = "FloatingPointError: the loss is nan"
    path.write_text(json.dumps(result))
    assert read_run_dir(path.parent)["status"].tolist() == ["diverged"]
    result |= {"config": upgraded(result["config"])}
    result |= {"format": 2, "config_hash": config_hash(result["config"])}
    path.write_text(json.dumps(result))
    assert read_run_dir(path.parent)["status"].tolist() == ["failed"]
    path.write_text(json.dumps(result | {"status": "diverged"}))
    assert read_run_dir(path.parent)["status"].tolist() == ["diverged"]


def test_an_old_results_hashes_are_todays(add_run):
    path = add_run() / "result.json"
    (row,) = read_run_dir(path.parent)[["config_hash", "protocol_hash"]].drop_duplicates().to_numpy().tolist()
    old = json.loads(path.read_text())
    config = upgraded(old["config"])
    assert config["task"]["sweep"] == {"seeds": "1,2,3", "learning_rates": "0.001"}
    assert row == [config_hash(config), protocol_hash(config)]
    assert old["config_hash"] != row[0]


def test_scratch_run_carries_its_length(add_run):
    frame = read_run_dir(add_run(task="mqar_scratch", lengths=[32], validation=[0.5]))
    assert frame["run_seq_len"].tolist() == [32]


@pytest.mark.parametrize("keep", [0, 1, 200], ids=lambda keep: f"{keep}-characters")
def test_truncated_result_is_named(add_run, keep):
    path = add_run() / "result.json"
    path.write_text(path.read_text()[:keep])
    with pytest.raises(ResultError, match=f"got {keep} bytes that are not JSON") as caught:
        read_run_dir(path.parent)
    assert str(path) in str(caught.value)
    assert "expected a complete result of format 3" in str(caught.value)


def _set(result, place, value):
    for key in place[:-1]:
        result = result[key]
    if value is ...:
        del result[place[-1]]
    else:
        result[place[-1]] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["format"], 4, "format is 4, expected a complete result of format 3"),
        (["format"], ..., "format is missing, expected"),
        (["run"], ..., "run is missing, expected an object"),
        (["run", "lr"], "1e-3", 'run.lr is "1e-3", expected a number > 0'),
        (["run", "lr"], 0, "run.lr is 0, expected a number > 0"),
        (["run", "seed"], True, "run.seed is true, expected an integer >= 0"),
        (["run", "model"], " ", 'run.model is " ", expected a name for files'),
        (["status"], "running", 'status is "running", expected "finished", "failed" or "diverged"'),
        (["stages"], {}, "stages is {}, expected a list"),
        (["stages", 1], 7, "stages[1] is 7, expected an object"),
        (["stages", 1, "seq_len"], 1.5, "stages[1].seq_len is 1.5, expected an integer >= 0"),
        (["stages", 2, "test_accuracy"], 98.0, "stages[2].test_accuracy is 98.0, expected a num"),
        (["stages", 1, "validation_accuracy"], None, "validation_accuracy is null, expected a num"),
        (["stages", 1, "test_accuracy_by_age"], [2], "test_accuracy_by_age is [2], expected a list"),
        (["provenance", "versions"], [], "provenance.versions is [], expected an object"),
        (["config", "task"], ..., "config.task is missing, expected an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_invalid_result_is_named(add_run, place, value, message):
    path = add_run() / "result.json"
    result = json.loads(path.read_text())
    _set(result, place, value)
    path.write_text(json.dumps(result))
    with pytest.raises(ResultError, match=re.escape(f"{path}: ")) as caught:
        read_run_dir(path.parent)
    assert message in str(caught.value)


def test_result_that_is_no_object(add_run):
    path = add_run() / "result.json"
    path.write_text("[1]")
    with pytest.raises(ResultError, match=r"got \[1\], expected a complete result"):
        read_run_dir(path.parent)


def test_find_run_dirs_tells_ended_from_not_ended(add_run, tmp_path):
    ended = add_run()
    (ended / "checkpoints").mkdir()
    (ended / "checkpoints" / "history.csv").touch()
    running = tmp_path / "runs" / "deep" / "er" / "run"
    running.mkdir(parents=True)
    (running / "history.csv").touch()
    (tmp_path / "runs" / "notes").mkdir()
    assert find_run_dirs(tmp_path / "runs") == ([ended], [running])
    with pytest.raises(ResultError, match="no such directory"):
        find_run_dirs(tmp_path / "nowhere")


def test_history_joins_rows_and_leaves_out_empty_ones(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(
        "step,stage,loss,validation_accuracy,window_mean,window/layer0/head10,window/layer0/head2\n"
        "0,0,,,5,1,2\n10,0,3.5,,,,\n10,0,,0.5,6,,\n15,0,,0.5,,,\n20,1,inf,,,,\n"
    )
    frame = read_history(path)
    assert head_columns(frame) == ["window/layer0/head2", "window/layer0/head10"]
    assert frame["step"].tolist() == [0, 10, 20]
    assert frame["loss"].tolist()[1:] == [3.5, np.inf]
    assert frame["window_mean"].tolist()[:2] == [5, 6]
    assert frame["metaplasticity_mean"].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,stage\n0,0\n", "column loss is missing, found step, stage, ...; expected step, st"),
        ("step,stage,loss\n0,0,high\n", "column loss is not of type float64"),
        ("step,stage,loss\n20,0,1\n10,0,1\n", "column step goes down, expected training steps"),
        ("", "cannot be read as a CSV file"),
    ],
    ids=["missing-column", "not-a-number", "steps-go-down", "empty"],
)
def test_invalid_history_is_named(tmp_path, text, message):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(ResultError, match=re.escape(f"{path}: {message}")):
        read_history(path)


def test_runs_csv_round_trip_is_exact(add_run, tmp_path):
    frame = read_run_dir(add_run(model="NA", lr=1 / 3e3, validation=[1 / 3, 2 / 3]))
    path = tmp_path / "runs.csv"
    frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_runs_csv(path), frame)


@pytest.mark.parametrize("column", ["run_seq_len", "test_accuracy", "label"])
def test_missing_column_of_runs_csv_is_named(add_run, tmp_path, column):
    path = tmp_path / "runs.csv"
    read_run_dir(add_run()).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(ResultError, match=f"runs.csv: column {column} is missing, found task"):
        read_runs_csv(path)


def test_wrong_cell_of_runs_csv_is_named(add_run, tmp_path):
    path = tmp_path / "runs.csv"
    read_run_dir(add_run()).assign(seed="one").to_csv(path, index=False)
    with pytest.raises(ResultError, match="column seed is not of type int64"):
        read_runs_csv(path)


def test_missing_files_and_columns_of_curves_csv(tmp_path):
    with pytest.raises(ResultError, match=r"curves.csv: cannot be read .*No such file"):
        read_curves_csv(tmp_path / "curves.csv")
    (tmp_path / "curves.csv").write_text("task,scale,model,lr,seed,run_seq_len,step\n")
    with pytest.raises(ResultError, match="column stage is missing"):
        read_curves_csv(tmp_path / "curves.csv")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_does_not_have_are_named(add_run, constant):
    path = add_run() / "result.json"
    path.write_text(path.read_text().replace('"train_loss": 0.1', f'"train_loss": {constant}'))
    with pytest.raises(ResultError, match=re.escape(f"{path}: holds {constant}, which is not JSON")):
        read_run_dir(path.parent)


@pytest.mark.parametrize(("cut", "message"), [(1, "row 2 has no line end"), (4, "row 2 has no line end")])
def test_history_that_ends_inside_a_line_is_named(tmp_path, cut, message):
    path = tmp_path / "history.csv"
    path.write_text("step,stage,loss\n0,0,1.25\n10,0,1.75\n"[:-cut])
    with pytest.raises(ResultError, match=re.escape(f"{path}: {message}")):
        read_history(path)


def test_history_must_have_the_rows_that_were_written(tmp_path):
    path = tmp_path / "history.csv"
    # Rows are counted as they stand in the file: two of one step, one without a value.
    path.write_text("step,stage,loss\n0,0,1.25\n0,0,\n10,0,\n")
    assert len(read_history(path, HistoryFacts(3, None))) == 1
    with pytest.raises(ResultError, match=re.escape(f"{path}: got 3 whole rows, expected the 4 that")):
        read_history(path, HistoryFacts(4, None))
