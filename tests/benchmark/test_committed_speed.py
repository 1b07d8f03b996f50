"""What docs/speed.md and docs/finetuning.md say in words of time follows from the committed rows."""

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def rows(name):
    return list(csv.DictReader((ROOT / f"results/{name}_nvidia-h200.csv").read_text().splitlines()))


def page(name):
    return " ".join((ROOT / f"docs/{name}.md").read_text().split())


def range_of(values, baseline):
    """The smallest and the largest ratio of what has the same key in both."""
    assert values.keys() == baseline.keys()
    ratios = [values[key] / baseline[key] for key in values]
    return min(ratios), max(ratios)


@pytest.mark.parametrize(
    ("operator", "words", "in_finetuning", "least", "most"),
    [
        ("palimpsa", "two to nine times as long", "two to nine times as long", (2, 2.5), (8.4, 9)),
        (
            *("palimpsa_scalar", "one a head a quarter to two thirds longer", "and a quarter to two thirds longer"),
            *((1.2, 1.3), (1.6, 1.72)),
        ),
    ],
)
def test_forward_passes_take_as_long_as_the_pages_say(operator, words, in_finetuning, least, most):
    table = [row for row in rows("kernels/operators") if row["case"] == "table"]
    own, baseline = (
        {row["shape"]: float(row["forward_device_ms"]) for row in table if row["operator"] == name}
        for name in (operator, "simple_gla")
    )
    found = range_of(own, baseline)
    assert least[0] <= found[0] <= least[1]
    assert most[0] <= found[1] <= most[1]
    assert words in page("speed")
    assert in_finetuning in page("finetuning")


@pytest.mark.parametrize(
    ("model", "words", "in_finetuning", "least", "most"),
    [
        (
            *("palimpsa_d", "takes a third to a half longer", "takes a third to a half longer with `vector`"),
            *((1.3, 1.36), (1.4, 1.5)),
        ),
        (
            *("palimpsa_d_scalar", "with one a head a fifth to a quarter", "a fifth to a quarter longer with `scalar`"),
            *((1.18, 1.23), (1.22, 1.27)),
        ),
    ],
)
def test_training_steps_take_as_long_as_the_pages_say(model, words, in_finetuning, least, most):
    own, baseline = (
        {row["seq_len"]: float(row["ms_per_step"]) for row in rows("training/steps") if row["model"] == name}
        for name in (model, "palimpsa_d_nometa")
    )
    found = range_of(own, baseline)
    assert least[0] <= found[0] <= least[1]
    assert most[0] <= found[1] <= most[1]
    assert words in page("speed")
    assert in_finetuning in page("finetuning")


def test_the_goals_are_met_but_for_the_one_that_the_log_explains():
    """GPU time and memory of one precision a head over simple GLA's: at most 1.4, 1.6 and 1.5."""
    found = {}
    for row in rows("kernels/operators"):
        if row["case"] == "table" and row["shape"] in ("170m", "760m"):
            columns = ("forward_device_ms", "forward_backward_device_ms", "peak_memory_mib")
            found[row["shape"], row["operator"]] = [float(row[name]) for name in columns]
    missed = []
    for shape in ("170m", "760m"):
        ratios = [a / b for a, b in zip(found[shape, "palimpsa_scalar"], found[shape, "simple_gla"], strict=True)]
        missed += [
            (shape, round(ratio, 2)) for ratio, goal in zip(ratios, (1.4, 1.6, 1.5), strict=True) if ratio > goal
        ]
    assert missed == [("170m", 1.67)]
    assert "missed by 4%" in (ROOT / "docs/LOG.md").read_text()
