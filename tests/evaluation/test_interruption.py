"""An evaluation that is interrupted goes on after what was done, and comes to the same; all else starts over."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.config.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAME = "palimpsa_d_tiny_laptop_lr_0.00464_seed_1"
FEW = ("evaluation.tasks=[piqa,boolq]", "long_range.measures=[phonebook,rare_bigrams]")


def came_to(folder: Path) -> tuple[dict, pd.DataFrame]:
    """result.json and the rows, but for how long it took, when, and by which command line."""
    result = json.loads((folder / "evaluations" / NAME / "result.json").read_text())
    for task in result["tasks"].values():
        del task["seconds"]
    del result["date"], result["provenance"]["command"]
    rows = pd.read_csv(folder / "commonsense/demonstration/evaluation.csv", dtype=str)
    return result, rows.drop(columns="date")


def assert_same(folder: Path, other: Path) -> None:
    (result, rows), (expected, expected_rows) = came_to(folder), came_to(other)
    assert result == expected
    pd.testing.assert_frame_equal(rows, expected_rows)


@pytest.fixture
def interrupt_at(monkeypatch):
    """Has Ctrl-C come at the n-th time that a model is asked to score; None: no more."""
    from palimpsa.evaluation.models.scoring import Scorer

    own = Scorer.score

    def interrupt_at(number: int | None) -> None:
        calls = []

        def score(self, requests):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return own(self, requests)

        monkeypatch.setattr(Scorer, "score", score)

    return interrupt_at


def unfinished(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "evaluations" / NAME / "unfinished").glob("[a-z]*.json")}


def test_after_ctrl_c_the_same_command_comes_to_the_same(task_data, evaluate, tmp_path, interrupt_at, capfd):
    data, whole = f"evaluation.data_dir={task_data}", tmp_path / "whole"
    assert evaluate(whole, data) == 0
    folder = tmp_path / "interrupted"
    capfd.readouterr()
    known: set[str] = set()
    # Within the third task, then within the phonebook, the third of the long-range measures that are kept.
    for number, done in ((3, 2), (9, 11)):
        interrupt_at(number)
        assert evaluate(folder, data) == 130
        found = capfd.readouterr()
        assert found.err.splitlines()[-1].startswith(
            "interrupted; the same command goes on after the tasks and measures"
        )
        assert found.out.count("measured before the interruption") == len(known)
        known = unfinished(folder)
        assert len(known) == done
        assert not list(folder.rglob("result.json"))
        assert not list(folder.rglob("*.csv"))
    interrupt_at(None)
    assert evaluate(folder, data) == 0
    assert capfd.readouterr().out.count("measured before the interruption") == 11
    assert_same(folder, whole)
    assert unfinished(folder) == set()


def test_after_a_kill_between_two_tasks_the_same_command_comes_to_the_same(
    run_folder, task_data, tmp_path, evaluation_words, start_script
):
    words = [f"checkpoint={run_folder}", *evaluation_words, f"evaluation.data_dir={task_data}", *FEW]
    results = {name: f"results_dir={tmp_path / name}" for name in ("killed", "whole")}

    killed = start_script("evaluate.py", *words, results["killed"])
    ended = time.monotonic() + 300
    while not unfinished(tmp_path / "killed") and killed.poll() is None and time.monotonic() < ended:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGTERM)
    assert killed.wait(60) != 0
    known = unfinished(tmp_path / "killed")
    assert "piqa" in known
    again = start_script("evaluate.py", *words, results["killed"])
    assert again.wait(120) == 0, again.err
    assert again.out.count("measured before") == len(known)
    # As a user starts it: the other two have found their libraries imported.
    command = [sys.executable, ROOT / "scripts/evaluate.py", *words, results["whole"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("measured before") == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.fixture
def interrupted(evaluate, task_data, tmp_path, interrupt_at, capfd):
    """An evaluation with both tasks and the phonebook done, and `again` goes on: what is measured anew, and why."""
    data = tmp_path / "data"
    shutil.copytree(task_data, data)
    interrupt_at(4)
    words = (f"evaluation.data_dir={data}", *FEW)
    assert evaluate(tmp_path, *words) == 130
    assert unfinished(tmp_path) == {"piqa", "boolq", "phonebook"}
    interrupt_at(None)
    capfd.readouterr()

    def again(*changes: str) -> dict[str, str]:
        assert evaluate(tmp_path, *words, *changes) == 0
        lines = [line.partition(" is measured anew: ") for line in capfd.readouterr().out.splitlines()]
        return {name: why for name, sign, why in lines if sign}

    return again


def another(key: str) -> str:
    return f"it was measured with another {key}"


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ("long_range.measures=[phonebook]", {}),
        ("evaluation.limit=3", dict.fromkeys(("piqa", "boolq"), another("limit"))),
        ("long_range.seed=1", {"phonebook": another("settings.seed")}),
        ("long_range.book_sizes=[2,3]", {"phonebook": another("settings.book_sizes")}),
        *(
            (change, dict.fromkeys(("piqa", "boolq", "phonebook"), another(key)))
            for change, key in (
                ("evaluation.max_length=16", "max_length"),
                ("evaluation.prefix_token=65", "prefix_token"),
                ("evaluation.batch_size=3", "batch_size"),
                ("dtype=bfloat16", "dtype"),
            )
        ),
    ],
)
def test_what_changes_a_number_starts_over_and_says_why(change, anew, interrupted):
    assert interrupted(change) == anew


def test_other_records_start_over_those_of_their_task_alone(interrupted, tmp_path):
    path = tmp_path / "data/boolq.jsonl"
    path.write_text(path.read_text().replace("Fire", "Water"))
    assert interrupted() == {"boolq": another("data")}


def test_other_weights_start_over(interrupted, run_folder, tmp_path):
    import torch

    from palimpsa.training.checkpoint import CHECKSUM_KEY, checksum

    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    path = copy / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    del content[CHECKSUM_KEY]
    content["state_dict"]["model.norm.weight"][0] += 1
    torch.save({**content, CHECKSUM_KEY: checksum(content)}, path)
    assert interrupted(f"checkpoint={copy}") == dict.fromkeys(("piqa", "boolq", "phonebook"), another("checkpoint"))


@pytest.mark.parametrize(("name", "why"), [("code_digest", "code"), ("_version", "versions.")])
def test_other_code_or_versions_start_over(name, why, interrupted, monkeypatch):
    monkeypatch.setattr(f"palimpsa.evaluation.unfinished.{name}", lambda *arguments: "0")
    found = interrupted()
    assert set(found) == {"piqa", "boolq", "phonebook"}
    assert all(line.startswith(another(why)) for line in found.values())


def test_another_path_of_the_operator_starts_over(interrupted, monkeypatch):
    monkeypatch.setenv("PALIMPSA_PATH", "reference")
    assert interrupted() == dict.fromkeys(("piqa", "boolq", "phonebook"), another("environment.PALIMPSA_PATH"))


def test_another_precision_of_products_starts_over(interrupted):
    import torch

    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        assert interrupted() == dict.fromkeys(("piqa", "boolq", "phonebook"), another("float32_products.cuda"))
    finally:
        products.fp32_precision = before


def test_a_file_that_was_changed_is_measured_anew(interrupted, tmp_path):
    path = tmp_path / "evaluations" / NAME / "unfinished/piqa.json"
    path.write_text(path.read_text().replace('"num_items": 2', '"num_items": 3'))
    (line,) = interrupted().items()
    assert line == ("piqa", f"{path}: it does not fit its own sha256")


def test_the_hubs_records_are_known_by_what_is_in_them():
    from types import SimpleNamespace

    from palimpsa.evaluation.harness import _records_sha256

    records = [{"text": "one"}, {"text": "two"}]
    digest = _records_sha256(SimpleNamespace(eval_docs=records), None)
    assert digest == _records_sha256(SimpleNamespace(eval_docs=[*records, {"text": "three"}]), 2)
    assert digest != _records_sha256(SimpleNamespace(eval_docs=records), 1)
    assert digest != _records_sha256(SimpleNamespace(eval_docs=[{"text": "one"}, {"text": "Two"}]), None)


@pytest.fixture
def spoil(monkeypatch):
    """Has the model say a number of each token from the n-th time on that it is asked to score."""
    import torch

    from palimpsa.evaluation.models.scoring import NativeNetwork, Scorer

    own_score, own_logits = Scorer.score, NativeNetwork.logits_at
    calls = []

    def spoil(value: float, first: int) -> None:
        def score(self, requests):
            calls.append(1)
            return own_score(self, requests)

        def logits_at(self, *arguments):
            found = own_logits(self, *arguments)
            return lambda places: torch.full_like(found(places), value) if len(calls) >= first else found(places)

        monkeypatch.setattr(Scorer, "score", score)
        monkeypatch.setattr(NativeNetwork, "logits_at", logits_at)

    return spoil


@pytest.mark.parametrize(
    ("number", "first", "words", "line", "kept"),
    [
        (math.nan, 1, ("lambada_openai", "phonebook"), f"perplexity of lambada_openai is nan for {NAME}, ", set()),
        (math.inf, 1, ("wikitext", "phonebook"), f"word_perplexity of wikitext is nan for {NAME}, ", set()),
        # Its accuracy would be a number, of answers that were chosen by none.
        (math.nan, 1, ("piqa", "phonebook"), f"piqa: got nan for 4 log-likelihoods of {NAME}, ", set()),
        (math.nan, 2, ("lambada_openai", "phonebook"), f"phonebook at 2 is nan for {NAME}, ", {"lambada_openai"}),
        (math.nan, 2, ("piqa", "loss_by_position"), f"loss_by_position at 1 is nan for {NAME}, ", {"piqa"}),
    ],
)
def test_what_is_no_number_is_refused_and_not_kept(
    number, first, words, line, kept, evaluate, task_data, tmp_path, spoil, capfd
):
    spoil(number, first)
    task, measure = words
    settings = f"evaluation.data_dir={task_data}", f"evaluation.tasks=[{task}]", f"long_range.measures=[{measure}]"
    assert evaluate(tmp_path, *settings) == 2
    found = capfd.readouterr().err.splitlines()[-1]
    assert found.startswith(f"error: {line}expected ")
    assert found.endswith("what this model predicts is out of range")
    assert unfinished(tmp_path) == kept


def test_a_standard_error_that_overflows_is_refused_and_one_that_there_is_not_stays():
    from palimpsa.evaluation.statistics import check_measured
    from palimpsa.evaluation.unfinished import plain_numbers

    with pytest.raises(
        ConfigError, match=r"^perplexity of wikitext has the standard error inf for mine, expected a fin"
    ):
        check_measured("mine", "perplexity of wikitext", 1e304, math.inf)
    check_measured("mine", "acc of piqa", 1.0, math.nan)
    found = plain_numbers({"value": math.nan, "stderr": math.nan})
    assert math.isnan(found["value"])
    assert found["stderr"] is None


def test_a_file_of_another_shape_is_measured_anew(interrupted, tmp_path):
    from palimpsa.text.manifest import json_sha256

    path = tmp_path / "evaluations" / NAME / "unfinished/piqa.json"
    content = {"measured": {}}
    path.write_text(json.dumps({**content, "sha256": json_sha256(content)}))
    assert interrupted() == {"piqa": f"{path}: follows_from is missing, expected an object"}
