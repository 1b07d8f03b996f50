"""evaluation.csv: read, brought up to date, shown; against numbers computed by hand."""

import math

import pandas as pd
import pytest

from palimpsa.analysis.collect.evaluation_files import COLUMNS, add_evaluation, read_evaluation_csv
from palimpsa.analysis.language.evaluation_report import build_evaluation
from palimpsa.analysis.language.evaluation_tables import caption, table_cells, to_markdown, zero_shot_summary
from palimpsa.analysis.language.published_numbers import PUBLISHED
from palimpsa.runs.schema import ResultError


def rows_of(name: str, *, limit: int | None = None, **shared) -> list[dict]:
    """A model's rows: WikiText, PIQA, ARC-c, an average, loss by position."""
    own = {
        **{"name": name, "label": f"Label of {name}", "scale": "h200", "seed": 1, "lr": 0.003, "steps": 700},
        **{"tokens": 91_750_400, "num_parameters": 44_000_000, "limit": limit, "max_length": 1024, "prefix_token": 2},
        **{"batch_size": 32, "dtype": "bfloat16", "device": "NVIDIA H200", "lm_eval": "0.4.13", "date": "2026-11-29"},
    }
    measured = [
        ("wikitext", "all", "word_perplexity", 32.162, 1.25, 62),
        ("piqa", "all", "acc", 0.6123, 0.0114, 1838),
        ("arc_challenge", "all", "acc_norm", 0.25, 0.0126, 1172),
        ("average_of_7", "all", "acc", 0.4, 0.004, 7),
        ("loss_by_position", "1", "nats", 6.5, 0.1, 10),
        ("loss_by_position", "3to4", "nats", 5.25, None, 20),
    ]
    columns = ("measure", "at", "metric", "value", "stderr", "count")
    every = [own | shared | dict(zip(columns, one, strict=True)) for one in measured]
    return [{column: row.get(column) for column in COLUMNS} for row in every]


def test_a_models_rows_take_the_place_of_those_of_its_name_and_no_others(tmp_path):
    path = add_evaluation(tmp_path, rows_of("a", label="=1+1"))
    add_evaluation(tmp_path, rows_of("b"))
    before = path.read_text()
    add_evaluation(tmp_path, rows_of("b", label="'=2+2"))
    after = path.read_text()
    assert before.splitlines()[:7] == after.splitlines()[:7]
    rows = read_evaluation_csv(tmp_path)
    assert list(rows["name"]) == ["a"] * 6 + ["b"] * 6
    assert rows["label"].iloc[-1] == "=2+2"
    assert rows["stderr"].isna().sum() == 2
    add_evaluation(tmp_path, rows_of("b"))
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda text: text.replace("measure", "task", 1), "its columns are not those of this version, expected name, "),
        (lambda text: text.replace("32.162", "many"), "value holds something else than numbers"),
        (lambda text: text.replace("32.162", ""), "value is empty in a row"),
        (lambda text: text.partition("\n")[0] + "\n", "holds no row"),
        (lambda text: text + text.splitlines()[1] + "\n", "got wikitext at all of a twice, expected it once"),
    ],
)
def test_a_damaged_file_is_named(change, error, tmp_path):
    path = add_evaluation(tmp_path, rows_of("a"))
    path.write_text(change(path.read_text()))
    with pytest.raises(ResultError, match=rf"evaluation\.csv: {error}"):
        read_evaluation_csv(tmp_path)
    with pytest.raises(ResultError, match=r"evaluation\.csv: "):
        add_evaluation(tmp_path, rows_of("b"))


def test_the_table_has_a_row_a_model_and_then_what_is_published(tmp_path):
    add_evaluation(tmp_path, rows_of("a"))
    header, (measured, *published) = table_cells(read_evaluation_csv(tmp_path))
    found = dict(zip(header, measured, strict=True))
    assert found["model"] == "Label of a"
    assert (found["parameters"], found["tokens"]) == ("44,000,000", "91,750,400")
    assert found["WikiText ppl"] == "32.16 ± 1.25"
    assert (found["PIQA"], found["ARC-c"], found["average of 7"]) == ("61.2 ± 1.1", "25.0 ± 1.3", "40.0 ± 0.4")
    assert found["BoolQ"] == found["with BoolQ"] == "-"
    assert len(published) == len(PUBLISHED)
    assert all(row[0].startswith("published: ") for row in published)
    best = dict(zip(header, published[0], strict=True))
    assert (best["WikiText ppl"], best["LAMBADA"], best["PIQA"]) == ("19.02", "43.55", "71.06")


def test_a_caption_says_what_the_numbers_are_of(tmp_path):
    add_evaluation(tmp_path, rows_of("a"))
    text = caption(read_evaluation_csv(tmp_path))
    assert "At most 1024 tokens are read before a target (max_length)" in text
    assert "begins with token 2 (prefix token); bfloat16, lm-eval 0.4.13; small scale; one seed." in text
    assert "demonstrates" not in text
    add_evaluation(tmp_path, rows_of("b", limit=50, seed=2))
    assert "at most 50 items a task; demonstrates the pipeline; small scale; 2 seeds" in caption(
        read_evaluation_csv(tmp_path)
    )


def test_markdown_shows_somebodys_label_as_it_is_and_each_measure(tmp_path):
    add_evaluation(tmp_path, rows_of("a", label="<b>|*mine*"))
    text = to_markdown(read_evaluation_csv(tmp_path))
    assert "| &lt;b&gt;\\|\\*mine\\* | 44,000,000 |" in text
    assert "## Loss by position" in text
    assert "| 1 | 6.500 ± 0.100 |" in text
    assert "| 3 to 4 | 5.250 |" in text
    assert "Phonebook" not in text


def test_figures_are_drawn_of_what_there_is(tmp_path):
    assert build_evaluation(tmp_path) == []
    add_evaluation(tmp_path, rows_of("palimpsa_d_44m"))
    add_evaluation(tmp_path, rows_of("palimpsa_d_nometa_44m", seed=math.nan, limit=5))
    paths = build_evaluation(tmp_path)
    assert [path.name for path in paths] == ["zero_shot.png", "long_range.png", "evaluation.md"]
    assert all(path.stat().st_size > 500 for path in paths)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in build_evaluation(tmp_path)] == before


def test_a_page_without_measurements_shows_what_is_published_alone(tmp_path):
    text = zero_shot_summary(tmp_path)
    assert text.count("published: ") == len(PUBLISHED)
    assert "Of ours none has been measured." in text
    add_evaluation(tmp_path / "commonsense", rows_of("a"))
    assert "| Label of a |" in zero_shot_summary(tmp_path)
    assert pd.read_csv(tmp_path / "commonsense/evaluation.csv")["name"].unique().tolist() == ["a"]
