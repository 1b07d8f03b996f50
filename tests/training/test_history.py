"""The curves of a run as its file has them."""

import pytest

from palimpsa.runs.read import read_history
from palimpsa.runs.rows import HistoryFacts
from palimpsa.training.history import History


@pytest.mark.parametrize("rows", [{}, {0: {"window_mean": 1.0}}], ids=["no row", "no row of training"])
def test_curves_of_a_run_that_ended_early_are_read(tmp_path, rows):
    """Its failure would have been left out of the table, as of a file that cannot be read."""
    history = History()
    history.rows = rows
    told = history.write(tmp_path / "history.csv")
    facts = HistoryFacts(told["history_rows"], told["history_sha256"])
    assert len(read_history(tmp_path / "history.csv", facts)) == len(rows)
