"""CSV files of benchmarks, pairs, evaluations and the like, which all have one reader."""

import pytest

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.runs.schema import ResultError


def test_a_last_row_that_was_cut_short_is_named(tmp_path):
    """A number that lost its end is a number too."""
    path = tmp_path / "steps.csv"
    path.write_text("name,ms\na,12.5\nb,370.25\n")
    assert read_csv_columns(path, ["name", "ms"], {"name"})["ms"].tolist() == [12.5, 370.25]
    path.write_text("name,ms\na,12.5\nb,3")
    with pytest.raises(ResultError, match=r"steps\.csv: row 2 has no line end, expected one; was the file cut short\?"):
        read_csv_columns(path, ["name", "ms"], {"name"})
