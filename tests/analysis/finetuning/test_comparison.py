"""Paired differences: what they are of, how sure they are, and what is said where nothing was measured."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from palimpsa.analysis.finetuning.build import build_finetuning
from palimpsa.analysis.finetuning.comparison import bootstrap_documents, compare
from palimpsa.analysis.finetuning.pairs import (
    COLUMNS,
    add_documents,
    add_pairs,
    metrics_of_stage,
    read_documents,
    read_pairs,
)
from palimpsa.analysis.finetuning.tables import NOT_MEASURED, finetuning_summary, finetuning_text
from palimpsa.runs.schema import ResultError

ROOT = Path(__file__).resolve().parents[3]
SHARED = {
    **{"scale": "h200", "label": "Mamba-2", "steps": 10, "config_hash": "0f", "device": "GPU"},
    **{"git_revision": "abc", "date": "2026-11-30"},
}


def rows_of(
    differences: list[float], *, name: str = "recall", measure: str = "accuracy", at: str = "512", base: float = 0.5
) -> list[dict]:
    """Rows of pairs whose converted arm is ahead by these differences, behind seeds that differ by much more."""
    rows = []
    for seed, difference in enumerate(differences, start=1):
        values = {"source": base - 0.2, "continued": base + seed, "converted": base + seed + difference}
        place = {"demonstration": name, "model": "mamba2", "seed": seed, "measure": measure, "at": at}
        rows += [{**SHARED, **place, "arm": arm, "value": value} for arm, value in values.items()]
    return rows


def test_a_difference_is_of_pairs_and_not_of_means_over_seeds():
    differences = [0.1, 0.2, 0.15, 0.11]
    (found,) = compare(pd.DataFrame(rows_of(differences)))
    assert found.num_pairs == 4
    assert found.difference == pytest.approx(0.14)
    assert found.converted - found.continued == pytest.approx(0.14)
    assert found.source == pytest.approx(0.3)
    half = 3.1824463 * np.std(differences, ddof=1) / 2
    assert found.interval == pytest.approx((0.14 - half, 0.14 + half))
    # Seeds differ by 1 and more: what does not pair them would have an interval ten times as wide.
    assert 0.1 <= found.bootstrap[0] < 0.14 < found.bootstrap[1] <= 0.2
    assert found.detectable == pytest.approx(2.1279 * np.std(differences, ddof=1), rel=1e-3)
    assert 0.8 < found.power < 1


def test_a_pair_needs_both_arms_and_one_pair_has_no_interval():
    rows = pd.DataFrame(rows_of([0.1, 0.2, 0.3]))
    lacking = rows.loc[~((rows["seed"] > 1) & (rows["arm"] == "converted"))]
    (found,) = compare(lacking)
    assert (found.num_pairs, found.difference) == (1, pytest.approx(0.1))
    assert all(math.isnan(one) for one in (*found.bootstrap, *found.interval, found.detectable, found.power))
    assert compare(rows.loc[rows["arm"] == "source"]) == []
    (same,) = compare(pd.DataFrame(rows_of([0.25, 0.25], base=1.0)))
    assert same.difference == 0.25
    assert math.isnan(same.detectable)


def test_documents_and_seeds_are_drawn_together():
    """Of differences that are of the seeds alone the interval is that of the seeds, however many documents."""
    generator = np.random.default_rng(1)

    def drawn(of_seed: float, of_document: float, num_documents: int) -> tuple[float, float]:
        seeds, documents = generator.normal(0, of_seed, 6), generator.normal(0, of_document, num_documents)
        rows = [
            {
                "demonstration": "x",
                "model": "m",
                "seed": i,
                "arm": arm,
                "document": j,
                "loss": 5 + (arm == "converted") * d,
            }
            for i, seed in enumerate(seeds)
            for j, document in enumerate(documents)
            for d in (seed + document,)
            for arm in ("continued", "converted")
        ]
        mean, (low, high) = bootstrap_documents(pd.DataFrame(rows), "x", "m")
        assert mean == pytest.approx(seeds.mean() + documents.mean())
        return (high - low) / 3.92, float(np.hypot(seeds.std() / 6**0.5, documents.std() / num_documents**0.5))

    for of_seed, of_document, num in ((1.0, 0.0, 50), (0.0, 1.0, 50), (1.0, 2.0, 20)):
        width, expected = drawn(of_seed, of_document, num)
        assert width == pytest.approx(expected, rel=0.1)


def test_rows_of_a_pair_take_the_place_of_its_old_ones(tmp_path):
    """Seeds and models can be trained one after the other, and on several machines."""
    add_pairs(tmp_path, rows_of([0.1, 0.2]))
    add_pairs(tmp_path, rows_of([0.3, 0.4, 0.5], name="language", measure="validation_loss", at="all"))
    add_pairs(tmp_path, rows_of([0.7]))
    add_pairs(tmp_path, [{**row, "model": "another"} for row in rows_of([0.9])])
    rows = read_pairs(tmp_path)
    sizes = rows.groupby(["demonstration", "model", "seed"]).size()
    (model,) = {row["model"] for row in rows_of([0.1])}
    recall = {("recall", model, 1): 3, ("recall", model, 2): 3, ("recall", "another", 1): 3}
    assert sizes.to_dict() == {**recall, **{("language", model, seed): 3 for seed in (1, 2, 3)}}
    converted = rows.loc[(rows["demonstration"] == "recall") & (rows["arm"] == "converted")]
    again = [row["value"] for row in rows_of([0.7]) if row["arm"] == "converted"]
    assert converted.loc[(converted["model"] == model) & (converted["seed"] == 1), "value"].tolist() == again
    document = {"demonstration": "recall", "model": "m", "seed": 1, "arm": "converted", "document": 0, "loss": 1.5}
    add_documents(tmp_path, [document])
    add_documents(tmp_path, [{**document, "loss": 2.5}])
    assert read_documents(tmp_path)["loss"].tolist() == [2.5]


def test_figures_and_table_are_made_of_the_csv_files_alone(tmp_path):
    add_pairs(
        tmp_path, [*rows_of([0.1, 0.2]), *rows_of([0.1, 0.3], at="1024"), *rows_of([0.1, 0.2], measure="phonebook")]
    )
    paths = build_finetuning(tmp_path)
    assert [path.name for path in paths] == ["pairs_recall.png", "finetuning.md"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in build_finetuning(tmp_path)] == before
    text = finetuning_text(tmp_path)
    assert "| Mamba-2 | accuracy, %, by tokens | 1024 | 2 |" in text
    assert "+20.0" in text
    assert "80% probability" in text


def test_where_nothing_was_measured_it_says_so(tmp_path):
    assert finetuning_summary(tmp_path) == NOT_MEASURED
    assert NOT_MEASURED in finetuning_text(tmp_path)
    assert build_finetuning(tmp_path) == []


def test_what_is_committed_is_what_the_csv_files_make():
    folder = ROOT / "results/finetuning"
    table = folder / "finetuning.md"
    assert table.exists() == (not read_pairs(folder).empty)
    if table.exists():
        assert table.read_text() == finetuning_text(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.assign(arm="both"), 'arm is "both", expected source, continued or converted'),
        (lambda rows: pd.concat([rows, rows.head(1)]), "twice, expected it once"),
        (lambda rows: rows.drop(columns="value"), "its columns are not those of this version"),
        (lambda rows: rows.assign(value=[None] * len(rows)), "value is empty in a row"),
        (lambda rows: rows.assign(value="much"), "value holds something else than numbers"),
    ],
)
def test_a_file_that_is_none_is_named(change, words, tmp_path):
    rows = pd.DataFrame(rows_of([0.1, 0.2]), columns=list(COLUMNS))
    change(rows).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ResultError, match=r"pairs\.csv: ") as caught:
        read_pairs(tmp_path)
    assert words in str(caught.value)


def test_the_rows_of_a_stage_are_of_what_was_tested():
    tested = {"seq_len": 16, "test_accuracy": 0.5, "validation_accuracy": 0.6}
    assert metrics_of_stage(tested) == [{"measure": "accuracy", "at": "16", "value": 0.5}]
    assert metrics_of_stage({**tested, "test_accuracy": None}) == []
    text = {"validation_loss": 3.0, "validation_perplexity": 20.0, "validation_loss_by_position": {"1": 5.0, "2": 4.0}}
    assert [row["measure"] for row in metrics_of_stage(text)] == [
        *("validation_loss", "validation_perplexity"),
        *["validation_loss_by_position"] * 2,
    ]
