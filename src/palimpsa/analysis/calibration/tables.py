"""What was measured as Markdown, for the results folder and for docs/calibration.md."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from palimpsa.analysis.calibration.comparison import LoadResult, Mean, load_results
from palimpsa.analysis.calibration.rows import read_calibration
from palimpsa.analysis.tables import markdown_table
from palimpsa.analysis.titles import subtitle
from palimpsa.config.text import markdown_text

NOT_MEASURED = "Not measured yet."
# The columns in their order: a signal's heading, without its layer.
WORDS = {
    "variance": "variance",
    "relative_variance": "relative variance",
    "confidence": "confidence",
    "entropy": "entropy",
    "age": "age",
}


def calibration_table(results: Sequence[LoadResult]) -> list[str]:
    """Lines of Markdown: a row a model and load, AUROCs of every score as means over seeds."""
    scores = sorted({score for one in results for score in one.auroc if _is_shown(score)}, key=_place)
    names = [_heading(signal, layer) for signal, layer in scores]
    header = [
        *("model", "L", "pairs", "seeds", "accuracy, %", *names),
        *("variance minus confidence, 95%", "Spearman, variance", "Spearman, confidence", "ECE, confidence"),
    ]
    return markdown_table(header, [_cells(one, scores) for one in results])


def _is_shown(score: tuple[str, str]) -> bool:
    """The layers of the relative variance are in calibration.csv alone."""
    return score[0] != "relative_variance" or score[1] == "sum"


def _place(score: tuple[str, str]) -> tuple[int, bool, str]:
    signal, layer = score
    return list(WORDS).index(signal) if signal in WORDS else len(WORDS), layer != "sum", layer


def _heading(signal: str, layer: str) -> str:
    words = WORDS.get(signal, signal)
    return words if not layer else f"{words}, {'all layers' if layer == 'sum' else f'layer {int(layer) + 1}'}"


def _cells(one: LoadResult, scores: Sequence[tuple[str, str]]) -> list[str]:
    nothing = Mean(math.nan, math.nan, math.nan, 0)
    return [
        *(one.label, f"{one.seq_len:,}", f"{one.num_pairs:,}", str(one.accuracy.num_seeds)),
        _number(one.accuracy.value * 100, 1),
        *(_number(one.auroc.get(score, nothing).value) for score in scores),
        _with_interval(one.difference),
        *(_number(one.spearman[score].value) for score in (("variance", "sum"), ("confidence", ""))),
        _number(one.calibration_error.value),
    ]


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _with_interval(mean: Mean) -> str:
    if math.isnan(mean.value):
        return "-"
    interval = "" if math.isnan(mean.low) else f" ({mean.low:+.3f} to {mean.high:+.3f})"
    return f"{mean.value:+.3f}{interval}"


CAPTION = (
    "AUROC: the probability that a wrong answer has the greater score, 0.5 by chance; means over the seeds that have "
    "wrong answers and right ones. variance minus confidence: of AUROCs, seed by seed, with Student's 95% interval. "
    "Spearman: with the loss of each query. ECE: of 1 minus the greatest probability as the probability of an error."
)


def calibration_text(folder: Path, scale: str) -> str:
    """All of a scale, as calibration_SCALE.md in the folder has it. Raises ResultError: see `read_calibration`."""
    rows = read_calibration(folder)
    own = rows.loc[rows["scale"] == scale]
    lines = [f"# Does the variance predict errors of recall? {subtitle(scale)}", "", _origin(own), ""]
    return "\n".join([*lines, *calibration_table(load_results(own)), "", CAPTION, ""])


def _origin(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    revision = "unknown" if pd.isna(first["git_revision"]) else markdown_text(str(first["git_revision"])[:12])
    device = markdown_text(str(first["device"]))
    return f"{device}, revision {revision}, {int(first['num_examples']):,} test sequences a load."


def calibration_summary(results: Path) -> str:
    """What docs/calibration.md shows: a table a scale, the largest first; says so where nothing was measured.

    Args:
        results: with calibration/ in it.
    """
    rows = read_calibration(results / "calibration")
    if rows.empty:
        return NOT_MEASURED
    lines: list[str] = []
    for scale in sorted(set(rows["scale"]), key=lambda scale: (scale == "laptop", scale)):
        own = rows.loc[rows["scale"] == scale]
        origin = textwrap.fill(f"**{subtitle(scale)}.** {_origin(own)}", 118, break_on_hyphens=False)
        lines += [origin, "", *calibration_table(load_results(own)), ""]
    return "\n".join([*lines, textwrap.fill(CAPTION, 118, break_on_hyphens=False)])
