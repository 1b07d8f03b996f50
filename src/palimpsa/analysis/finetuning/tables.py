"""The comparison as Markdown, for the results folder and for docs/finetuning.md."""

import math
from collections.abc import Sequence
from pathlib import Path

from palimpsa.analysis.finetuning.comparison import Comparison, bootstrap_documents, compare, power_text
from palimpsa.analysis.finetuning.pairs import read_documents, read_pairs
from palimpsa.analysis.tables import markdown_table
from palimpsa.config.text import markdown_text

NOT_MEASURED = "Not measured yet."
# In words, and by what numbers are multiplied in a table.
MEASURES = {
    "accuracy": ("accuracy, %, by tokens", 100),
    "validation_loss": ("validation loss, nats a token", 1),
    "validation_perplexity": ("validation perplexity", 1),
    "validation_loss_by_position": ("validation loss, nats, by position", 1),
    "loss_by_position": ("loss in long documents, nats, by position", 1),
    "rare_bigrams": ("rare bigrams, nats, by age", 1),
    "phonebook": ("phonebook, nats a number gained, by entries", 1),
    "repeat_copy": ("copy, nats a token gained, by tokens", 1),
}
# Of the summary in the documentation: what has a row a position is in the folder's own table.
SUMMARY = ("accuracy", "validation_loss", "validation_perplexity", "phonebook", "repeat_copy")
HEADER = (
    *("model", "measure", "at", "pairs", "trained", "trained on", "converted", "difference", "bootstrap, 95%"),
    *("t, 95%", "detectable", "power"),
)


def comparison_table(comparisons: Sequence[Comparison]) -> list[str]:
    """Lines of Markdown, a row a comparison."""
    return markdown_table(list(HEADER), [_cells(one) for one in comparisons])


def _cells(one: Comparison) -> list[str]:
    words, factor = MEASURES.get(one.measure, (one.measure, 1))
    numbers = [_number(value * factor) for value in (one.source, one.continued, one.converted)]
    intervals = [_interval(ends, factor) for ends in (one.bootstrap, one.interval)]
    return [
        *(markdown_text(text) for text in (one.label, words, one.at)),
        str(one.num_pairs),
        *numbers,
        _number(one.difference * factor, signed=True),
        *intervals,
        _number(one.detectable * factor),
        "-" if math.isnan(one.power) else f"{one.power:.0%}",
    ]


def _number(value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "-"
    # Of 0.0005 and less three digits would say 0.
    digits = 1 if abs(value) >= 10 else 3 if abs(value) >= 5e-4 or not value else 6
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _interval(ends: tuple[float, float], factor: float) -> str:
    low, high = (_number(end * factor, signed=True) for end in ends)
    return "-" if low == "-" else f"{low} to {high}"


def finetuning_text(folder: Path) -> str:
    """The whole comparison of a folder, as finetuning.md there has it.

    Raises:
        ResultError: see `read_pairs`.
    """
    rows, documents = read_pairs(folder), read_documents(folder)
    lines = ["# Converted, and trained on as it was", ""]
    if rows.empty:
        return "\n".join([*lines, NOT_MEASURED, ""])
    comparisons = compare(rows)
    for demonstration in dict.fromkeys(one.demonstration for one in comparisons):
        own = [one for one in comparisons if one.demonstration == demonstration]
        lines += [f"## {markdown_text(demonstration)}", "", *comparison_table(own), ""]
        for model, label in dict.fromkeys((one.model, one.label) for one in own):
            mean, ends = bootstrap_documents(documents, demonstration, model)
            if not math.isnan(mean):
                interval = _interval(ends, 1)
                lines += [
                    f"{markdown_text(label)}, long documents: {mean:+.4f} nats a token, 95% over seeds and documents "
                    f"{interval}.",
                    "",
                ]
    lines += [f"difference: converted minus trained on. detectable: {power_text()}.", ""]
    return "\n".join(lines)


def finetuning_summary(results: Path) -> str:
    """What docs/finetuning.md shows: a row a model and measure; says so where nothing was measured.

    Args:
        results: with finetuning/ in it.
    """
    comparisons = [one for one in compare(read_pairs(results / "finetuning")) if one.measure in SUMMARY]
    if not comparisons:
        return NOT_MEASURED
    return "\n".join([*comparison_table(comparisons), "", f"detectable: {power_text()}."])
