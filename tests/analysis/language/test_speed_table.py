"""The table of how long zero-shot evaluation takes, against numbers computed by hand."""

import pytest

from palimpsa.analysis.collect.benchmark_columns import EVALUATION_SPEED_COLUMNS
from palimpsa.analysis.language.speed_table import evaluation_speed_table
from palimpsa.runs.schema import ResultError

COLUMNS = EVALUATION_SPEED_COLUMNS["evaluation_speed"]


def write(results, *rows):
    path = results / "commonsense/evaluation_speed_nvidia-h200.csv"
    path.parent.mkdir(exist_ok=True)
    lines = [",".join(str(row.get(column, "1")) for column in COLUMNS) for row in rows]
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def test_a_row_has_its_seconds_and_how_many_times_as_fast_as_hflm_it_is(tmp_path):
    harness = {"model": "llama", "path": "hflm", "num_parameters": 1_500, "load_s": 15.24, "first_s": 8, "again_s": 4}
    without = dict.fromkeys(("speed_ratio", "total_speed_ratio", "again_speed_ratio"), "")
    ours = {"model": "lm/palimpsa_d", "path": "ours", "first_s": 4, "speed_ratio": 2, "again_speed_ratio": 0.5}
    write(tmp_path, harness | without, harness | ours)
    assert evaluation_speed_table(tmp_path).splitlines()[2:] == [
        "| llama | 1,500 | the harness's own HFLM | 15.2 | 8.0 | 4.0 | 1 | 1 |",
        "| palimpsa_d | 1,500 | ours | 15.2 | 4.0 | 4.0 | 2.00 | 0.50 |",
    ]


def test_a_path_that_is_neither_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(ResultError, match="evaluation_speed_nvidia-h200"):
        evaluation_speed_table(tmp_path)
    write(tmp_path, {"model": "llama", "path": "other"})
    with pytest.raises(ResultError, match="path is 'other', expected one of hflm, ours"):
        evaluation_speed_table(tmp_path)
