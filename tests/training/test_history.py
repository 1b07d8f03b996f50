"""The curves of a run as its file has them."""

from types import SimpleNamespace
from typing import Any

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


def test_curves_of_a_run_that_goes_on_are_in_a_file_every_few_seconds(tmp_path, monkeypatch):
    from palimpsa.training import history as module

    path, now = tmp_path / "history.csv", 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    other_rank = History(path)
    other_rank.record(trainer(1, is_global_zero=False), {"stage": 0, "loss": 3.0})
    assert not path.exists()
    history = History(path)
    for step, seconds in ((1, 0.0), (2, module.WRITE_EVERY_S / 2), (3, module.WRITE_EVERY_S)):
        now = 100.0 + seconds
        history.record(trainer(step), {"stage": 0, "loss": 3.0})
        # At once the first time, not again too soon.
        assert read_history(path)["step"].tolist() == {1: [1], 2: [1], 3: [1, 2, 3]}[step]


def test_a_file_that_takes_long_to_write_is_written_less_often(tmp_path, monkeypatch):
    from palimpsa.training import history as module

    history, now = History(tmp_path / "history.csv"), 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)

    def slow(_) -> dict:
        nonlocal now
        written.append(now)
        now += 2.0
        return {}

    written: list[float] = []
    monkeypatch.setattr(history, "write", slow)
    for step in range(1, 1_000):
        history.record(trainer(step), {"loss": 3.0})
        now += 1.0
    assert len(written) == pytest.approx(1_000 / (2.0 / module.MOST_OF_THE_TIME), abs=1)


def test_a_full_disk_does_not_end_a_run_for_its_curves(tmp_path):
    history = History(tmp_path / "no folder" / "history.csv")
    history.record(trainer(1), {"loss": 3.0})
    assert history.rows == {1: {"loss": 3.0}}


def trainer(step: int, *, is_global_zero: bool = True) -> Any:
    return SimpleNamespace(global_step=step, loggers=[], is_global_zero=is_global_zero)
