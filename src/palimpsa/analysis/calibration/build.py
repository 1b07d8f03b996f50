"""Every figure and table of calibration from the CSV files of its folder."""

from pathlib import Path

from palimpsa.analysis.calibration.figure import calibration_figure
from palimpsa.analysis.calibration.rows import BINS_FILE, read_bins, read_calibration
from palimpsa.analysis.calibration.tables import calibration_text
from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError


def build_calibration(folder: Path) -> list[Path]:
    """Of each scale in calibration.csv a figure and a table, calibration_SCALE.png and .md; returns the paths.

    Raises:
        ResultError: for a file that is damaged, or reliability.csv without the bins of a scale.
        OSError: a file cannot be written.
    """
    rows, bins, paths = read_calibration(folder), read_bins(folder), []
    for scale in sorted(set(rows["scale"])):
        own = bins.loc[bins["scale"] == scale]
        if own.empty:
            raise ResultError(f"{folder / BINS_FILE}: got no row of scale {scale}, expected those of calibration.csv")
        figure = calibration_figure(rows.loc[rows["scale"] == scale], own)
        paths.append(save_figure(figure, folder / f"calibration_{scale}")[0])
        paths.append(write_atomic(folder / f"calibration_{scale}.md", calibration_text(folder, str(scale))))
    return paths
