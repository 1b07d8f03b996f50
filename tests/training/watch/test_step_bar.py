"""What a person watches: the optimiser steps of all, and the newest numbers, on a bar and in a sweep's words."""

import re

import lightning as L
import pytest

from palimpsa.runs.directory import RunDirectory
from palimpsa.tasks.build import build_task
from palimpsa.training.run import TrainingRun
from palimpsa.training.watch.step_bar import StepBar, newest_numbers

# Of 19 steps, in two stages.
COSTS = ("trainer.log_every=2", "trainer.probe_every=4", "trainer.spike_sigmas=1000")


class Watcher(L.Callback):
    """Looks at the bar after each of Lightning's batches: its steps, their total, its words."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[tuple[int, int | None, str]] = []
        self.stop_at = stop_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        bar = trainer.progress_bar_callback
        assert isinstance(bar, StepBar)
        assert bar._metric_component is not None
        task = bar.train_progress_bar
        self.seen.append((int(task.completed), task.total, " ".join(bar._metric_component._generate_metrics_texts())))
        assert task.description.strip() == "steps"
        if trainer.global_step == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def watched(tiny_config, monkeypatch):
    """Trains with a bar: `watched("trainer.accumulate=2")`; what was on it, and what a sweep was told."""
    monkeypatch.setattr("palimpsa.tasks.mqar.MQARTask.reports_costs", True)

    def train(*overrides: str, stop_at: int | None = None):
        config = tiny_config(*COSTS, *overrides)
        told: list[tuple[int, str]] = []
        directory = RunDirectory(config.run_dir)
        run = TrainingRun(config, build_task(config.task, 1), directory, lambda *words: told.append(words))
        watcher = Watcher(stop_at)
        try:
            run.fit([watcher], show_bar=True)
        except KeyboardInterrupt:
            assert stop_at is not None
        return watcher.seen, told

    return train


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_bar_counts_optimiser_steps_of_all_that_the_run_takes(watched, accumulate):
    seen, _ = watched(f"trainer.accumulate={accumulate}")
    assert len(seen) == 19 * accumulate
    assert {total for _, total, _ in seen} == {19}
    # After a step's last part; of one that is under way those before it.
    assert [steps for steps, _, _ in seen] == [batch // accumulate for batch in range(1, 19 * accumulate + 1)]


def test_the_bar_shows_the_newest_numbers_and_a_sweep_is_told_them(watched):
    seen, told = watched("model=palimpsa_d")
    number = r"[\d.]+[kM]?"
    # Before the first row those of the probe alone.
    assert re.fullmatch(rf"N_t: {number} I ratio: {number}", seen[0][2])
    costs = rf"loss: {number} tokens/s: {number} gradient: {number} data wait: \d+%"
    assert re.fullmatch(rf"{costs} N_t: {number} I ratio: {number}", seen[-1][2])
    step, words = told[0]
    assert step == 2
    costs = rf"loss {number}, tokens/s {number}, gradient {number}, data wait \d+%"
    assert re.fullmatch(rf"L 8, {costs}, N_t {number}, I ratio {number}", words)
    assert [step for step, _ in told][-1] == 19


def test_a_resumed_run_goes_on_where_its_bar_was(watched):
    watched("trainer.checkpoint_every=10", stop_at=12)
    seen, _ = watched("trainer.checkpoint_every=10")
    assert [steps for steps, _, _ in seen] == list(range(11, 20))
    assert {total for _, total, _ in seen} == {19}
    # The numbers of the rows before it.
    assert "loss: " in seen[0][2]


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("tokens_per_s", 999.4, {"tokens/s": "999"}),
        ("tokens_per_s", 999_999.0, {"tokens/s": "1M"}),
        ("tokens_per_s", 45_678.0, {"tokens/s": "45.7k"}),
        ("mfu", 0.412, {"MFU": "41%"}),
        ("peak_memory_gib", 61.23, {"GiB": "61.2"}),
        ("gradient_norm", 0.5234, {"gradient": "0.52"}),
        ("window/layer0/head0", 3.0, {}),
    ],
)
def test_numbers_are_told_in_a_few_digits(column, value, shown):
    assert newest_numbers({column: value}) == shown
