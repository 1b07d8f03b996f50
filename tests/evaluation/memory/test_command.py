"""scripts/inspect_memory.py: what it writes, whole or not at all, and what it says of bad input."""

import json
import socket

import pytest

FILES = {"inspection.json", "inspection.png", "inspection.svg", "inspection.html"}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_is_inspected_on_its_task(inspect, recall_run, tmp_path, capsys):
    assert inspect(recall_run, "--task", "mqar", "--out", tmp_path / "own") == 0
    assert names(tmp_path / "own") == FILES
    assert names(tmp_path) == {"own", "plotly.min.js"}
    text = (tmp_path / "own/inspection.json").read_text()
    content = json.loads(text)
    assert content["attribution_error"] < 1e-5
    assert len(content["heads"]) == 4
    assert content["queries"]["num_contexts"] == 16
    assert all(0 <= head["own_pair"]["share"] <= 1 for head in content["heads"])
    assert content["provenance"]["versions"]["torch"]
    for private in (str(recall_run), str(tmp_path), socket.gethostname()):
        assert private not in text
        assert private not in (tmp_path / "own/inspection.html").read_text()
    assert "of queries read their own pair" in capsys.readouterr().out


def test_an_inspection_is_replaced_on_demand_by_a_whole_one(inspect, recall_run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "own"
    assert inspect(recall_run, "--out", out, "--layer", "0", "--head", "0") == 0
    before = (out / "inspection.json").read_bytes()
    assert inspect(recall_run, "--out", out) == 2
    assert f"error: --out: {out} is there already, expected a new folder, or --replace" in capsys.readouterr().err
    command = "palimpsa.evaluation.memory.command.write_views"

    def fail(folder):
        raise OSError(28, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(command, fail)
        assert inspect(recall_run, "--out", out, "--replace") == 1
        assert inspect(recall_run, "--out", tmp_path / "new") == 1
    assert (out / "inspection.json").read_bytes() == before
    assert names(tmp_path) == {"own", "plotly.min.js"}
    assert inspect(recall_run, "--out", out, "--replace") == 0
    assert (out / "inspection.json").read_bytes() != before
    assert names(tmp_path) == {"own", "plotly.min.js"}


def test_a_folder_of_something_else_is_not_replaced(inspect, recall_run, tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.txt").write_text("dear")
    assert inspect(recall_run, "--out", tmp_path / "letters", "--replace") == 2
    assert "which is no inspection" in capsys.readouterr().err
    assert names(tmp_path / "letters") == {"a.txt"}


@pytest.fixture
def bad(tmp_path, recall_run):
    """Folders and files that are no good, by name."""
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "some.txt").write_text("words")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "hollow").mkdir()
    return {**{one.name.partition(".")[0]: one for one in tmp_path.iterdir()}, "run": recall_run}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{absent}", "not there, expected a run's directory, a checkpoint, or a folder of convert.py's"),
        ("{hollow}", "got no checkpoint in it, expected a checkpoint, or a run's directory"),
        ("{foreign}", "got a model of type 'llama', expected 'palimpsa'"),
        ("{some}", "cannot be read"),
        ("{run} --layer 2", "--layer: got 2, expected 0 to 1"),
        ("{run} --head -1", "--head: got -1, expected 0 to 1"),
        ("{run} --text {some}", "which has no tokenizer, expected a model that was trained on text"),
        ("{run} --text {empty}", "which is empty, expected a text of at least one token"),
        ("{run} --text {bytes}", "expected a file of UTF-8 text (its bytes are none)"),
        ("{run} --text {absent}", "expected a file of UTF-8 text (No such file or directory)"),
        ("{run} --task copying", "--task: got 'copying', expected 'mqar', on which"),
        ("{run} --name ../up", "--name: got '../up', expected letters"),
    ],
)
def test_bad_input_is_one_line(inspect, bad, words, told, tmp_path, capsys):
    places = {**bad, "absent": tmp_path / "absent"}
    out = [] if "--name" in words else ["--out", tmp_path / "out"]
    assert inspect(*(word.format(**places) for word in words.split()), *out) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_kept_its_last_weights_says_how_to(inspect, recall_run, tmp_path, capsys):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(recall_run, run)
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["num_steps"] += 1
    (run / "result.json").write_text(json.dumps(result))
    assert inspect(run, "--out", tmp_path / "out") == 2
    assert "which trainer.keep_final=true has a run keep" in capsys.readouterr().err


def test_a_text_is_read_by_the_models_own_tokenizer_and_cut_where_it_is_long(inspect, run_folder, tmp_path, capsys):
    text = "It was a truth universally acknowledged. " * 40
    (tmp_path / "text.txt").write_text(text)
    assert inspect(run_folder, "--text", tmp_path / "text.txt", "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out/inspection.json").read_text())
    assert "".join(content["sequence"]["pieces"]) == text[:1024]
    assert (content["sequence"]["num_cut"], content["queries"]) == (len(text) - 1024, None)
    note = f"note: text.txt: got {len(text):,} tokens, read are the first 1,024; the rest is cut"
    assert note in capsys.readouterr().out


def test_an_exported_folder_is_read_with_the_tokenizer_in_it(inspect, run_folder, tmp_path):
    from palimpsa.conversion.command import convert_main

    assert convert_main(["export", str(run_folder), str(tmp_path / "folder")]) == 0
    (tmp_path / "text.txt").write_text("She said so.")
    assert inspect(tmp_path / "folder", "--text", tmp_path / "text.txt", "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out/inspection.json").read_text())
    assert "".join(content["sequence"]["pieces"]) == "She said so."


def test_a_model_of_text_has_no_pairs_to_ask_for(inspect, run_folder, tmp_path, capsys):
    assert inspect(run_folder, "--task", "commonsense", "--out", tmp_path / "out") == 2
    told = "--task: got 'commonsense', which stores no pairs that it asks for, expected --text"
    assert told in capsys.readouterr().err
