"""Result files that are damaged, changed or odd: each is found, named, and left out alone.

Otherwise a user draws numbers that no run has computed, or loses a whole collection to one file.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.schema import plain
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.read import read_curves_csv, read_gpu_sessions_csv, read_history, read_run_dir, read_runs_csv
from palimpsa.runs.result import checksum, read_result, read_result_and_rows
from palimpsa.runs.rows import history_of
from palimpsa.runs.schema import CHECKSUM, FileUnreadableError, ResultError
from palimpsa.sweeps.ledger import Job, survey_runs
from palimpsa.training.run import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_overrides):
    """A run of this tree's, and its config."""
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed

    config = typed(compose_config([*tiny_overrides, "model=mamba2", f"results_dir={tmp_path_factory.mktemp('runs')}"]))
    run(config)
    return config


@pytest.fixture
def result_file(trained, tmp_path) -> Path:
    """The result of a run, to be damaged."""
    return Path(shutil.copytree(trained.run_dir, tmp_path / "run")) / "result.json"


def sign(path: Path, result: dict) -> None:
    """Writes a result with a checksum that fits, as somebody's program might."""
    rest = {name: value for name, value in result.items() if name != CHECKSUM}
    path.write_text(json.dumps(rest | {CHECKSUM: checksum(rest)}))


def test_every_flipped_bit_is_seen_or_changes_nothing(result_file):
    whole, flips = result_file.read_bytes(), random.Random(0)
    expected, seen = read_result_and_rows(result_file), 0
    for _ in range(600):
        content = bytearray(whole)
        content[flips.randrange(len(content))] ^= 1 << flips.randrange(8)
        result_file.write_bytes(content)
        try:
            found = read_result_and_rows(result_file)
        except ResultError:
            seen += 1
        else:
            assert found == expected
    # The others lie in the spaces of the indentation: a space may be a line end.
    assert seen > 400


@pytest.mark.parametrize("number_format", [1, 2, 4])
def test_a_result_that_says_it_is_of_another_format_is_found(result_file, number_format):
    """The digit is a bit or two from one that has no checksum."""
    text = result_file.read_text()
    result_file.write_text(text.replace('"format": 3', f'"format": {number_format}'))
    with pytest.raises(ResultError, match=r"sha256 is|format is 4"):
        read_result(result_file)


CHANGES = {
    "seed": (lambda result: result["run"].update(seed=7), "run.seed is 7, expected 1, that of the config in it"),
    "rate": (lambda result: result["run"].update(lr=1.0), "run.lr is 1.0, expected 0.00464"),
    "model": (lambda result: result["run"].update(model="gla"), 'run.model is "gla", expected "mamba2"'),
    "task": (lambda result: result["run"].update(task="mqar_long"), 'run.task is "mqar_long", expected'),
    "scale": (lambda result: result["run"].update(scale="h200"), 'run.scale is "h200", expected'),
    "label": (lambda result: result["run"].update(label="Ours"), 'run.label is "Ours", expected "Mamba-2'),
    "hash": (lambda result: result.update(config_hash="0" * 16), 'config_hash is "0000000000000000", expected'),
    "config": (lambda result: result["config"].update(seed=2), "config_hash is "),
    "a setting": (lambda result: result["config"]["optimizer"].update(weight_decay=0.5), "config_hash is "),
    "accuracy": (lambda result: result["stages"][-1].update(test_accuracy=1.5), "test_accuracy is 1.5, expected a num"),
    "above": (lambda result: result["stages"][-1].update(validation_accuracy=98), "expected a number from 0 to 1"),
    "huge": (lambda result: result["stages"][-1].update(steps=2**70), "steps is 1180591620717411303424, expected an"),
    "integer": (lambda result: result["provenance"].update(wall_time_s=10**400), "wall_time_s is 1000"),
    "control": (lambda result: result["run"].update(label="a\0b"), "run.label is "),
    "path": (lambda result: result["run"].update(scale="/../../victim"), "run.scale is "),
    "dots": (lambda result: result["run"].update(model=".."), 'run.model is "..", expected a name for files'),
    "groups": (lambda result: result["config"].update(model=3), "its config cannot be read|config_hash is"),
    "variant": (lambda result: result["config"].pop("variant"), "its config cannot be read"),
    "status": (lambda result: result.update(status=["finished"]), "status is "),
    "history": (lambda result: result["metrics"].update(history_rows=2**64), "history_rows is "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_result_says_must_be_possible_and_agree_with_its_config(result_file, trained, name):
    """Whoever changes it may write a checksum that fits."""
    change, message = CHANGES[name]
    result = json.loads(result_file.read_text())
    change(result)
    sign(result_file, result)
    with pytest.raises(ResultError, match=message) as caught:
        read_result(result_file)
    assert str(caught.value).startswith(f"{result_file}: ")
    # Collection and sweep have one judge.
    with pytest.raises(RunDirectoryError, match=message):
        survey_runs([Job((), plain(trained) | {"run_dir": str(result_file.parent)})])


ODD = {
    "nesting": b"[" * 200_000,
    "nested objects": b'{"a":' * 200_000,
    "digits": b'{"format": ' + b"9" * 5_000 + b"}",
    "infinite": b'{"format": 3, "provenance": {"wall_time_s": 1e400}}',
    "surrogate": b'{"format": 3, "run": {"label": "\\ud800"}}',
    "byte order mark": "\ufeff{}".encode(),
    "UTF-16": '{"format": 3}'.encode("utf-16"),
    "UTF-16 without a mark": '{"format": 3}'.encode("utf-16-le"),
    "Latin-1": '{"format": "ü"}'.encode("latin-1"),
    "zeros": b"\0" * 100,
    "text": b'"a text"',
}


@pytest.mark.parametrize("name", ODD)
def test_odd_content_is_one_line_to_the_collection_and_to_the_sweep(result_file, trained, name):
    result_file.write_bytes(ODD[name])
    with pytest.raises(ResultError, match="expected a complete result") as caught:
        read_run_dir(result_file.parent)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    with pytest.raises(RunDirectoryError, match="was it cut short or changed"):
        survey_runs([Job((), plain(trained) | {"run_dir": str(result_file.parent)})])


@pytest.mark.parametrize("name", ["result.json", "config.json", "history.csv"])
@pytest.mark.parametrize("kind", ["rights", "pipe", "folder"])
def test_what_cannot_be_read_is_not_called_damaged(result_file, trained, monkeypatch, name, kind):
    """Or its owner deletes a result that is whole. And nothing waits for the other end of a pipe."""
    path = result_file.with_name(name)
    if kind == "rights":
        opened = os.open

        def refuse(file, *arguments, **options):
            if Path(file) == path:
                raise PermissionError(13, "Permission denied", str(file))
            return opened(file, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
    else:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    told = "Permission denied" if kind == "rights" else "Not a regular file|Is a directory"
    job = Job((), plain(trained) | {"run_dir": str(result_file.parent)})
    with pytest.raises(RunDirectoryError, match=rf"{name}: cannot be read \(({told})\)") as caught:
        survey_runs([job])
    assert "elete" not in str(caught.value)
    if name == "result.json":
        with pytest.raises(FileUnreadableError, match="cannot be read"):
            read_run_dir(path.parent)
    if name == "history.csv":
        with pytest.raises(FileUnreadableError, match="cannot be read"):
            read_history(path)


def test_changed_curves_are_found(result_file, trained):
    history = result_file.with_name("history.csv")
    facts = history_of(result_file, read_result(result_file))
    assert len(read_history(history, facts))
    digits = [i for i, byte in enumerate(history.read_bytes()) if chr(byte).isdigit()]
    content = bytearray(history.read_bytes())
    content[digits[-1]] ^= 1
    history.write_bytes(content)
    with pytest.raises(ResultError, match="got other bytes than those that its result has the sha256 of"):
        read_history(history, facts)
    with pytest.raises(RunDirectoryError, match=r"Delete it to do without these curves, or result\.json to run again"):
        survey_runs([Job((), plain(trained) | {"run_dir": str(result_file.parent)})])


CELLS = {
    "lr": ("0", "-1", "nan", "inf", "x"),
    "seed": ("-1", "1.5", str(2**70), ""),
    "status": ("done", ""),
    "model": ("", "../x", "a/b", "..", "a\0b", "x" * 200),
    "scale": ("/../../../victim", ".hidden", " "),
    "task": ("..", "mqar\n"),
    "label": ("", "a\0b", "a\x1b[31m"),
    "test_accuracy": ("1.5", "-0.1", "inf"),
    "test_accuracy_by_age": ("0.5;2", "x"),
    "steps": ("-3", str(2**80)),
    "wall_time_s": ("inf", "1e400"),
}


@pytest.mark.parametrize(("column", "cell"), [(column, cell) for column, cells in CELLS.items() for cell in cells])
def test_a_cell_that_no_run_can_have_is_named(add_run, tmp_path, column, cell):
    path = tmp_path / "runs.csv"
    read_run_dir(add_run()).astype(object).assign(**{column: cell}).to_csv(path, index=False)
    with pytest.raises(ResultError, match=rf"runs\.csv: (column {column} is |cannot be read)") as caught:
        read_runs_csv(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("column", "cell"), [("step", str(2**70)), ("step", "-1"), ("stage", "1e30"), ("loss", "x")])
def test_an_odd_cell_of_the_curves_is_named(tmp_path, column, cell):
    path = tmp_path / "history.csv"
    row = {"step": "10", "stage": "0", "loss": "1.5"} | {column: cell}
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    with pytest.raises(ResultError, match=rf"history\.csv: column {column} is ") as caught:
        read_history(path)
    assert "\n" not in str(caught.value)


def test_a_pipe_in_place_of_a_csv_file_does_not_hang(tmp_path):
    for name, read in (("runs.csv", read_runs_csv), ("curves.csv", read_curves_csv)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FileUnreadableError, match=r"cannot be read as a CSV file \(Not a regular file\)"):
            read(tmp_path / name)


def test_a_pipe_in_place_of_a_lock_does_not_hang(tmp_path):
    directory = RunDirectory(tmp_path)
    os.mkfifo(directory.lock_file)
    with pytest.raises(OSError, match="Not a regular file"):
        directory.holder()
    with pytest.raises(RunDirectoryError, match="Not a regular file"), directory.locked():
        pass


@pytest.mark.parametrize(("column", "cell"), [("held_s", "inf"), ("num_gpus", "-1"), ("num_finished", str(2**70))])
def test_a_session_that_cannot_have_been_is_named(tmp_path, column, cell):
    path = tmp_path / "gpu_sessions.csv"
    row = {"started": "2026-01-01", "device": "a GPU", "num_gpus": "1", "held_s": "3.5", "git_revision": "f00d"}
    row |= {"num_finished": "2", "what": "a sweep"} | {column: cell}
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    with pytest.raises(ResultError, match=rf"gpu_sessions\.csv: column {column} is "):
        read_gpu_sessions_csv(path)
