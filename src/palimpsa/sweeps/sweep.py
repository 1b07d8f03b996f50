"""A sweep: what of it is left to launch, in which phases, and the Hydra plugin that launches it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import hold_lock
from palimpsa.sweeps.ledger import Entry, Group, Job, Ledger, look

# Hydra takes plugins from the package of this name alone, so that is where the class is listed.
SWEEPER_NAME = "hydra_plugins.palimpsa.PhasedSweeper"

# Runs jobs; why each of them failed, None where it did not.
Launch = Callable[[Sequence[Job]], Sequence[str | None]]


@dataclass(frozen=True)
class Choice:
    """The learning rate that a model's selection runs decided for.

    lr: None where none of them finished.
    score: mean validation accuracy, a fraction.
    """

    label: str
    lr: float | None
    score: float
    num_seeds: int
    num_rates: int

    def __str__(self) -> str:
        if self.lr is None:
            return f"{self.label}: none of its selection runs finished: no learning rate chosen, no second phase"
        seeds = f"{self.num_seeds} seed{'' if self.num_seeds == 1 else 's'}"
        rates = f"{self.num_rates} rate{'' if self.num_rates == 1 else 's'}"
        return f"{self.label}: learning rate {self.lr:g} of {rates}, {self.score:.1%} validation accuracy on {seeds}"


class Sweep:
    """The runs of one command line.

    In two phases every learning rate is run on the selection seeds first; the runs of the other seeds that are at each
    model's chosen rate follow. A model's rate is chosen from its selection runs alone, once all of them have finished
    or diverged: one that failed for another reason, a full disk's, is tried again first.

    Args:
        directory: hydra.sweep.dir, which one sweep at a time may work in.
        jobs: every combination of the swept values.
        selection_seeds: those of the first phase; None for one phase.
    """

    def __init__(self, directory: Path, jobs: Sequence[Job], selection_seeds: frozenset[int] | None = None) -> None:
        self.directory = directory
        self.jobs = jobs
        self.selection_seeds = selection_seeds
        self.choices: dict[Group, Choice] = {}
        # Why the launcher stopped before its runs ended, if it did.
        self.fault: Exception | None = None
        self._reasons: dict[Path, str] = {}
        self._launched: set[Path] = set()
        self._told: set[Group] = set()

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
            RunDirectoryError: see `ledger.look`.
        """
        if self.selection_seeds is None:
            return Ledger([self._with_reason(entry) for entry in look(self.jobs)], {})
        # All at once: a damaged directory of the second phase is found before the first.
        found = {entry.job.directory: entry for entry in look(self.jobs)}
        by_group: dict[Group, list[Entry]] = {}
        for job in self.jobs:
            by_group.setdefault(job.group, []).append(found[job.directory])
        shown: set[Path] = set()
        num_waiting: dict[Group, int] = {}
        for group, entries in by_group.items():
            selection = [entry for entry in entries if entry.job.seed in self.selection_seeds]
            later = [entry for entry in entries if entry.job.seed not in self.selection_seeds]
            if group not in self.choices and all(entry.ended for entry in selection):
                self.choices[group] = choose(selection)
            choice = self.choices.get(group)
            shown.update(entry.job.directory for entry in selection)
            if choice is not None and choice.lr is not None:
                shown.update(entry.job.directory for entry in later if entry.job.lr == choice.lr)
            elif later:
                # What an earlier command did of the second phase counts, whatever rate is chosen now.
                done = {entry.job.seed: entry for entry in later if entry.status != "missing"}
                shown.update(entry.job.directory for entry in done.values())
                if waiting := {entry.job.seed for entry in later} - done.keys():
                    num_waiting[group] = len(waiting)
        entries = [entry for directory, entry in found.items() if directory in shown]
        return Ledger([self._with_reason(entry) for entry in entries], num_waiting)

    def _with_reason(self, entry: Entry) -> Entry:
        """Also a run that could write no result, a damaged checkpoint's say, has failed where it was launched here."""
        reason = self._reasons.get(entry.job.directory)
        return entry if entry.status != "missing" or reason is None else Entry(entry.job, "failed", reason)

    def news(self) -> list[str]:
        """The choices that were made since the last call, a line a model."""
        new = [group for group in self.choices if group not in self._told]
        self._told.update(new)
        places = {group[:2] for group in self.choices}
        return [f"{' '.join(group[:2])} " * (len(places) > 1) + str(self.choices[group]) for group in new]

    def learn(self, failures: Sequence[str]) -> None:
        """Takes over what failed runs said themselves ("NAME: REASON"), for a launcher that stopped before it could."""
        reasons = dict(failure.split(": ", 1) for failure in failures)
        for job in self.jobs:
            if job.name in reasons and job.directory in self._launched:
                self._reasons.setdefault(job.directory, reasons[job.name])

    def undecided(self) -> list[str]:
        """The models whose second phase waits for selection runs, a line each."""
        if self.selection_seeds is None:
            return []
        selection = [job for job in self.jobs if job.seed in self.selection_seeds and job.group not in self.choices]
        groups: dict[Group, list[Entry]] = {}
        for entry in look(selection):
            groups.setdefault(entry.job.group, []).append(entry)
        return [
            f"{entries[0].job.label}: {sum(not entry.ended for entry in entries)} of {len(entries)} selection runs "
            "have neither finished nor diverged: no learning rate chosen yet, no second phase"
            for entries in groups.values()
        ]

    def run(self, launch: Launch, say: Callable[[Sequence[str]], None]) -> None:
        """Launches what is neither finished or diverged nor at work elsewhere, phase by phase, each run once at most.

        Args:
            launch: runs jobs.
            say: takes the lines about learning rates that were chosen.
        """
        while True:
            ledger = self.survey()
            say(self.news())
            jobs = [job for job in ledger.left() if job.directory not in self._launched]
            if not jobs:
                return
            self._launched.update(job.directory for job in jobs)
            try:
                reasons = launch(jobs)
            except Exception as error:
                self.fault = error
                if not any(entry.ended for entry in look(jobs)):
                    # Of a mistake in a launcher the line that is told in the end would say too little.
                    if not isinstance(error, OSError):
                        traceback.print_exc()
                    return
            else:
                self._reasons.update({job.directory: why for job, why in zip(jobs, reasons, strict=True) if why})


def choose(selection: Sequence[Entry]) -> Choice:
    """The learning rate of one model, by the rule of the figures, from its ended selection runs."""
    from palimpsa.analysis.statistics.learning_rate import choose_learning_rates
    from palimpsa.runs.read import result_rows, runs_frame
    from palimpsa.runs.result import read_result

    files = [RunDirectory(entry.job.directory).result_file for entry in selection]
    rows = runs_frame([row for file in files for row in result_rows(file, read_result(file))])
    chosen = choose_learning_rates(rows).iloc[0]
    return Choice(
        label=selection[0].job.label,
        lr=None if chosen["lr"] != chosen["lr"] else float(chosen["lr"]),
        score=chosen["score"],
        num_seeds=chosen["num_seeds"],
        num_rates=chosen["num_rates"],
    )


_under_way: ContextVar[tuple[Sweep, Callable[[Sequence[str]], None]]] = ContextVar("sweep")


@contextlib.contextmanager
def under_way(sweep: Sweep, say: Callable[[Sequence[str]], None]) -> Iterator[None]:
    """Within it, Hydra's multirun carries out this sweep, and tells with `say` what is chosen."""
    token = _under_way.set((sweep, say))
    try:
        yield
    finally:
        _under_way.reset(token)


class PhasedSweeper(Sweeper):
    """Hydra's plugin for the `Sweep` that is under way; configs/hydra/sweeper/phased.yaml.

    Args:
        params, selection_seeds: have become the sweep's when the command line was checked.
        max_batch_size: runs handed to the launcher at a time; None for all of a phase.
    """

    def __init__(self, params: Any, selection_seeds: Any, max_batch_size: int | None) -> None:
        self.max_batch_size = max_batch_size
        self._num_launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        sweep, say = _under_way.get()
        try:
            OmegaConf.save(self.config, sweep.directory / "multirun.yaml")
        except OSError as error:
            raise RunDirectoryError(f"results_dir: cannot write to {sweep.directory}: {error.strerror}") from error
        sweep.run(self._launch, say)

    def _launch(self, jobs: Sequence[Job]) -> list[str | None]:
        reasons: list[str | None] = []
        size = self.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            batch = [list(job.overrides) for job in jobs[start : start + size]]
            for done in self.launcher.launch(batch, initial_job_idx=self._num_launched):
                error = done._return_value if done.status == JobStatus.FAILED else None
                reasons.append(error and f"{type(error).__name__}: {' '.join(str(error).split())}")
            self._num_launched += len(batch)
        return reasons


def register_sweeper() -> None:
    """Makes the sweeper known to Hydra."""
    plugins = Plugins.instance()
    plugins.register(PhasedSweeper)
    plugins.class_name_to_class[SWEEPER_NAME] = PhasedSweeper
