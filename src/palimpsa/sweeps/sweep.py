"""A sweep: which of its runs are left to launch, in which phases, and at which learning rate the second phase runs."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import hold_lock
from palimpsa.runs.schema import FAILED
from palimpsa.sweeps.ledger import MISSING, Entry, Group, Job, Ledger, survey_runs

# Runs jobs; why each of them failed, None where it did not.
Launch = Callable[[Sequence[Job]], Sequence[str | None]]
PrintLines = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Choice:
    """The learning rate that a model's selection runs decided for.

    lr: None where none of them finished.
    score: mean validation accuracy, a fraction; by_loss: or mean validation loss, nats.
    """

    label: str
    lr: float | None
    score: float
    num_seeds: int
    num_rates: int
    by_loss: bool = False

    def __str__(self) -> str:
        if self.lr is None:
            return f"{self.label}: none of its selection runs finished: no learning rate chosen, no second phase"
        seeds = f"{self.num_seeds} seed{'' if self.num_seeds == 1 else 's'}"
        rates = f"{self.num_rates} rate{'' if self.num_rates == 1 else 's'}"
        score = f"validation loss {self.score:.4f}" if self.by_loss else f"{self.score:.1%} validation accuracy"
        return f"{self.label}: learning rate {self.lr:g} of {rates}, {score} on {seeds}"


class Sweep:
    """The runs of one command line.

    In two phases every learning rate is run on the selection seeds first; the runs of the other seeds that are at each
    model's chosen rate follow. A model's rate is chosen from its selection runs alone, once all of them have finished
    or diverged: one that failed for another reason, a full disk's, is tried again first.

    Args:
        directory: runs/ of results_dir, which one sweep at a time may work in.
        jobs: every combination of the swept values.
        selection_seeds: those of the first phase; None for one phase.
        launch: what `run` is meant to run its jobs by.
    """

    def __init__(
        self,
        directory: Path,
        jobs: Sequence[Job],
        selection_seeds: frozenset[int] | None = None,
        launch: Launch = lambda jobs: [None] * len(jobs),
    ) -> None:
        self.directory = directory
        self.jobs = jobs
        self.selection_seeds = selection_seeds
        self.launch = launch
        self.choices: dict[Group, Choice] = {}
        # Why the launcher stopped before its runs ended, if it did.
        self.launcher_error: Exception | None = None
        self._failures: dict[Path, str] = {}
        self._launched: set[Path] = set()
        self._announced: set[Group] = set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other sweeps out of the directory.

        Raises:
            LockHeldError: another sweep is at work there.
            RunDirectoryError: it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(self.directory / ".sweep.lock"))
            except OSError as error:
                raise RunDirectoryError(f"results_dir: cannot write to {self.directory}: {error.strerror}") from error
            yield

    def survey(self) -> Ledger:
        """Where every run stands; chooses learning rates where that can be done.

        Raises:
            RunDirectoryError: see `survey_runs`.
        """
        if self.selection_seeds is None:
            return Ledger([self._with_failure(entry) for entry in survey_runs(self.jobs)], {})
        # All at once: a damaged directory of the second phase is found before the first.
        found = {entry.job.directory: entry for entry in survey_runs(self.jobs)}
        by_group: dict[Group, list[Entry]] = {}
        for job in self.jobs:
            by_group.setdefault(job.group, []).append(found[job.directory])
        shown: set[Path] = set()
        num_waiting: dict[Group, int] = {}
        for group, entries in by_group.items():
            selection = [entry for entry in entries if entry.job.seed in self.selection_seeds]
            later = [entry for entry in entries if entry.job.seed not in self.selection_seeds]
            if group not in self.choices and all(entry.is_final for entry in selection):
                self.choices[group] = choose_learning_rate(selection)
            choice = self.choices.get(group)
            shown.update(entry.job.directory for entry in selection)
            if choice is not None and choice.lr is not None:
                shown.update(entry.job.directory for entry in later if entry.job.lr == choice.lr)
            elif later:
                # What an earlier command did of the second phase counts, whatever rate is chosen now.
                begun = {entry.job.seed: entry for entry in later if entry.status != MISSING}
                shown.update(entry.job.directory for entry in begun.values())
                if waiting := {entry.job.seed for entry in later} - begun.keys():
                    num_waiting[group] = len(waiting)
        entries = [entry for directory, entry in found.items() if directory in shown]
        return Ledger([self._with_failure(entry) for entry in entries], num_waiting)

    def _with_failure(self, entry: Entry) -> Entry:
        """Also a run that could write no result, a damaged checkpoint's say, has failed where it was launched here."""
        reason = self._failures.get(entry.job.directory)
        return entry if entry.status != MISSING or reason is None else Entry(entry.job, FAILED, reason)

    def new_choices(self) -> list[str]:
        """The choices that were made since the last call, a line a model."""
        new = [group for group in self.choices if group not in self._announced]
        self._announced.update(new)
        has_several = len({group[:2] for group in self.choices}) > 1
        return [f"{' '.join(group[:2])} " * has_several + str(self.choices[group]) for group in new]

    def undecided_models(self) -> list[str]:
        """The models whose second phase waits for selection runs, a line each."""
        if self.selection_seeds is None:
            return []
        selection = [job for job in self.jobs if job.seed in self.selection_seeds and job.group not in self.choices]
        groups: dict[Group, list[Entry]] = {}
        for entry in survey_runs(selection):
            groups.setdefault(entry.job.group, []).append(entry)
        return [
            f"{entries[0].job.label}: {sum(not entry.is_final for entry in entries)} of {len(entries)} selection runs "
            "have neither finished nor diverged: no learning rate chosen yet, no second phase"
            for entries in groups.values()
        ]

    def record_failures(self, failures: Sequence[str]) -> None:
        """Takes over what failed runs reported themselves ("NAME: REASON"), for a launcher that stopped before."""
        reasons = dict(failure.split(": ", 1) for failure in failures)
        for job in self.jobs:
            if job.name in reasons and job.directory in self._launched:
                self._failures.setdefault(job.directory, reasons[job.name])

    def run(self, launch: Launch, print_lines: PrintLines) -> None:
        """Launches what is neither finished or diverged nor at work elsewhere, phase by phase, each run once at most.

        Args:
            launch: runs jobs.
            print_lines: takes the lines about learning rates that were chosen.

        Raises:
            RunDirectoryError: the sweep's directory cannot be written.
        """
        while True:
            ledger = self.survey()
            print_lines(self.new_choices())
            jobs = [job for job in ledger.jobs_to_launch() if job.directory not in self._launched]
            if not jobs:
                return
            self._launched.update(job.directory for job in jobs)
            try:
                reasons = launch(jobs)
            except RunDirectoryError:
                raise
            except Exception as error:
                self.launcher_error = error
                if not any(entry.is_final for entry in survey_runs(jobs)):
                    # Of a mistake in a launcher the line that is printed in the end would say too little.
                    if not isinstance(error, OSError):
                        traceback.print_exc()
                    return
            else:
                self._failures.update({job.directory: why for job, why in zip(jobs, reasons, strict=True) if why})


def choose_learning_rate(selection: Sequence[Entry]) -> Choice:
    """The learning rate of one model, by the rule of the figures, from its selection runs, all of them final."""
    # Here and not above: pandas.
    from palimpsa.analysis.statistics.learning_rate import choose_learning_rates
    from palimpsa.analysis.statistics.validation_loss import best_rate, is_measured_by_loss, losses_by_rate
    from palimpsa.runs.read import runs_frame
    from palimpsa.runs.result import read_result_and_rows

    files = [RunDirectory(entry.job.directory).result_file for entry in selection]
    found, label = [read_result_and_rows(file) for file in files], selection[0].job.label
    results = [result for result, _ in found]
    if is_measured_by_loss(results):
        (rates,) = losses_by_rate(results).values()
        best = best_rate(rates)
        if best is None:
            return Choice(label, None, math.inf, 0, len(rates), by_loss=True)
        return Choice(label, best.lr, best.loss, best.num_seeds, len(rates), by_loss=True)
    chosen = choose_learning_rates(runs_frame([row for _, rows in found for row in rows])).iloc[0]
    return Choice(
        label=label,
        lr=None if chosen["lr"] != chosen["lr"] else float(chosen["lr"]),
        score=chosen["score"],
        num_seeds=chosen["num_seeds"],
        num_rates=chosen["num_rates"],
    )
