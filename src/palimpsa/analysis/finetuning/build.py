"""Every figure and table of fine-tuning from the CSV files of its folder."""

from pathlib import Path

from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.finetuning.comparison import compare
from palimpsa.analysis.finetuning.figure import pairs_figure
from palimpsa.analysis.finetuning.pairs import read_pairs
from palimpsa.analysis.finetuning.strength import build_strengths
from palimpsa.analysis.finetuning.tables import finetuning_text
from palimpsa.runs.files import write_atomic


def build_finetuning(folder: Path) -> list[Path]:
    """Draws pairs.csv, a figure a demonstration, and strength.csv, and writes finetuning.md; returns the paths.

    Raises:
        ResultError, OSError: see `read_pairs` and `read_strengths`.
    """
    rows, paths = read_pairs(folder), []
    for demonstration, own in rows.groupby("demonstration", sort=False):
        if compare(own):
            paths.append(save_figure(pairs_figure(own), folder / f"pairs_{demonstration}")[0])
    if not rows.empty:
        paths.append(write_atomic(folder / "finetuning.md", finetuning_text(folder)))
    return [*paths, *build_strengths(folder)]
