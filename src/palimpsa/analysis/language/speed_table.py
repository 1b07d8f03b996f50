"""How long zero-shot evaluation takes: seconds through this repository's path, beside the harness's own."""

from pathlib import Path

from palimpsa.analysis.collect.benchmark_files import read_evaluation_speed_csv
from palimpsa.analysis.tables import count_text, markdown_table
from palimpsa.config.text import markdown_text
from palimpsa.runs.schema import ResultError

DEVICE = "nvidia-h200"
_PATHS = {"hflm": "the harness's own HFLM", "ours": "ours"}


def evaluation_speed_table(results: Path) -> str:
    """A row a model and path: seconds to load, with first calls and without, and how many times as fast as HFLM.

    Raises:
        ResultError: for a path that is neither; see also `read_evaluation_speed_csv`.
    """
    cells = []
    for row in read_evaluation_speed_csv(results / "commonsense", DEVICE).to_dict("records"):
        if row["path"] not in _PATHS:
            raise ResultError(f"evaluation_speed: path is {row['path']!r}, expected one of {', '.join(_PATHS)}")
        ratios = [f"{row[name]:.2f}" if row[name] > 0 else "1" for name in ("speed_ratio", "again_speed_ratio")]
        model = row["model"].rpartition("/")[2]
        seconds = [f"{row[name]:.1f}" for name in ("load_s", "first_s", "again_s")]
        cells.append([markdown_text(model), count_text(row["num_parameters"]), _PATHS[row["path"]], *seconds, *ratios])
    header = ["model", "parameters", "path", "load, s", "first, s", "again, s", "speed, first", "speed, again"]
    return "\n".join(markdown_table(header, cells))
