"""What is committed of language models: each number of evaluation.csv is of a whole run beside it, of its commit."""

import json
from pathlib import Path

import pytest

from palimpsa.analysis.collect.evaluation_files import read_evaluation_csv
from palimpsa.runs.read import find_run_dirs, read_history
from palimpsa.runs.result import read_result_and_rows
from palimpsa.runs.rows import history_of

FOLDER = Path(__file__).resolve().parents[3] / "results/commonsense"


def test_evaluated_models_are_the_committed_runs():
    ended, not_ended = find_run_dirs(FOLDER / "runs")
    assert not not_ended
    rows = read_evaluation_csv(FOLDER)
    assert rows["name"].nunique() == len(ended)
    for folder in ended:
        path = folder / "result.json"
        result, (run,) = read_result_and_rows(path)
        # Raises where these are other curves than those of the run.
        history = read_history(folder / "history.csv", history_of(path, result))
        assert history["loss"].notna().sum() >= run["steps"] / 10
        own = rows.loc[rows["name"] == f"{run['model']}_{run['scale']}_lr_{run['lr']:g}_seed_{run['seed']}"]
        assert len(own)
        for column in ("num_parameters", "steps", "git_revision", "device"):
            assert set(own[column]) == {run[column]}
        assert set(own["tokens"]) == {run["steps"] * result["config"]["task"]["tokens_per_step"]}


def test_rows_are_those_of_the_results_beside_them():
    from palimpsa.evaluation.result import result_rows

    rows = read_evaluation_csv(FOLDER)
    for name, own in rows.groupby("name"):
        result = json.loads((FOLDER / f"evaluations/{name}/result.json").read_text())
        expected = [row["value"] for row in result_rows(result)]
        assert own["value"].tolist() == pytest.approx(expected, rel=1e-12)
        assert set(own["git_revision"]) == {result["provenance"]["git_revision"]}


def test_twins_are_measured_alike():
    rows = read_evaluation_csv(FOLDER)
    kept = ["measure", "at", "metric", "count", "limit", "max_length", "prefix_token", "batch_size", "dtype", "data"]
    first, *others = [own[kept].reset_index(drop=True) for _, own in rows.groupby("name")]
    assert others
    for other in others:
        assert first.equals(other)


def test_averages_are_those_of_the_tasks():
    rows = read_evaluation_csv(FOLDER)
    metrics = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm"}
    tasks = ["lambada_openai", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "social_iqa"]
    for _, own in rows.groupby("name"):
        values = own.set_index(["measure", "metric"])["value"]
        for extra, average in (([], "average_of_7"), (["boolq"], "average_of_8")):
            found = [values[task, metrics.get(task, "acc")] for task in tasks + extra]
            assert values[average, "acc"] == pytest.approx(sum(found) / len(found), abs=1e-6)
