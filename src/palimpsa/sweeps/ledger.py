"""The ledger of a sweep: where each of its runs stands, read from the runs' directories without touching them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.schema import DIVERGED, FAILED, FINISHED

RUNNING = "running"
MISSING = "missing"
STATUSES = (FINISHED, RUNNING, FAILED, DIVERGED, MISSING)
# The detail of a missing run that has a checkpoint.
RESUMABLE = "to be continued"
# Lines of one kind below the table.
MAX_LINES = 10

# A task, a scale, and a model with its variant.
Group = tuple[str, str, str]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    overrides: what Hydra is told.
    config: the plain config that it makes of them.
    """

    overrides: tuple[str, ...]
    config: dict[str, Any]

    @property
    def directory(self) -> Path:
        return Path(self.config["run_dir"])

    @property
    def model(self) -> str:
        """The model and its variant, as directories are called."""
        return f"{self.config['model']['name']}{self.config['variant']}"

    @property
    def label(self) -> str:
        """The model and its variant, as figures call them."""
        return f"{self.config['model']['label']}{self.config['variant'].replace('_', ' ')}"

    @property
    def group(self) -> Group:
        """What shares a learning rate."""
        return self.config["task"]["name"], self.config["scale"]["name"], self.model

    @property
    def task_and_scale(self) -> str:
        """As directories are called."""
        return f"{self.config['task']['directory']}/{self.config['scale']['name']}"

    @property
    def lr(self) -> float:
        return self.config["optimizer"]["lr"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def name(self) -> str:
        """As its own progress calls it."""
        return f"{self.model} lr {self.lr:g} seed {self.seed}"


@dataclass(frozen=True)
class Entry:
    """Where one run stands.

    status: finished; running (another process holds its directory); failed, or diverged (result.json says so); missing
        (nothing, or interrupted).
    detail: who holds it, why it failed, where it goes on; empty where there is nothing to add.
    """

    job: Job
    status: str
    detail: str = ""

    @property
    def is_final(self) -> bool:
        """Finished, or diverged, at no accuracy: the run would end so again."""
        return self.status in (FINISHED, DIVERGED)


def survey_runs(jobs: Iterable[Job]) -> list[Entry]:
    """Where runs stand.

    Raises:
        RunDirectoryError: where a directory holds another config or a damaged file; names the first of them.
    """
    entries, damages = [], []
    for job in jobs:
        try:
            entries.append(_survey_run(job))
        except RunDirectoryError as error:
            damages.append(str(error))
        except OSError as error:
            damages.append(f"results_dir: cannot read {job.directory}: {error.strerror}")
    if damages:
        more = f" (and so for {len(damages) - 1} more of the sweep's directories)" if len(damages) > 1 else ""
        raise RunDirectoryError(f"{damages[0]}{more}")
    return entries


def _survey_run(job: Job) -> Entry:
    directory = RunDirectory(job.directory)
    # Asked before the result is read: a run that ends in between is finished, not missing.
    holder = directory.holder()
    result = directory.inspect(job.config)
    if result is not None and result["status"] == FINISHED:
        return Entry(job, FINISHED)
    if holder is not None:
        return Entry(job, RUNNING, holder)
    if result is not None:
        return Entry(job, result["status"], " ".join(str(result["error"]).split()))
    return Entry(job, MISSING, RESUMABLE if directory.has_checkpoint() else "")


@dataclass(frozen=True)
class Ledger:
    """Where the runs of a sweep stand.

    entries: in the order of the sweep.
    num_waiting: the runs at a learning rate that is yet to be chosen, by group.
    """

    entries: Sequence[Entry]
    num_waiting: dict[Group, int]

    @property
    def num_runs(self) -> int:
        return len(self.entries) + sum(self.num_waiting.values())

    @property
    def complete(self) -> bool:
        """Whether every run is finished or has diverged."""
        return all(entry.is_final for entry in self.entries) and not self.num_waiting

    def jobs_to_launch(self) -> list[Job]:
        """The runs that are neither finished or diverged nor at work elsewhere."""
        return [entry.job for entry in self.entries if entry.status in (FAILED, MISSING)]

    def with_status(self, status: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == status]

    def print(self, console: Console, title: str) -> None:
        """A table with a row a model, and one of sums; statuses that few sweeps know have a column where they occur."""
        rows: dict[Group, dict[str, int]] = {}
        for entry in self.entries:
            row = rows.setdefault(entry.job.group, dict.fromkeys(STATUSES, 0))
            row[entry.status] += 1
        for group, count in self.num_waiting.items():
            rows[group]["waiting"] = count
        columns = [status for status in STATUSES if status != DIVERGED or self.with_status(DIVERGED)]
        columns += ["waiting"] if self.num_waiting else []
        table = Table("model", box=None, pad_edge=False, show_footer=len(rows) > 1)
        table.columns[0].footer = "all"
        for column in columns:
            table.add_column(column, justify="right", footer=str(sum(row.get(column, 0) for row in rows.values())))
        table.add_column("runs", justify="right", footer=str(self.num_runs))
        has_several = len({group[:2] for group in rows}) > 1
        for group, row in rows.items():
            counts = [row.get(column, 0) for column in columns]
            table.add_row(Text("/".join(group if has_several else group[2:])), *map(str, [*counts, sum(counts)]))
        console.print(Text(title), soft_wrap=True)
        console.print(table)

    def detail_lines(self) -> list[str]:
        """The runs that failed or diverged, that other processes are at work on, and that go on from a checkpoint."""
        lines = []
        for kind in (FAILED, DIVERGED, RUNNING, RESUMABLE):
            if kind == RESUMABLE:
                entries = [entry for entry in self.with_status(MISSING) if entry.detail == RESUMABLE]
            else:
                entries = self.with_status(kind)
            for entry in entries[:MAX_LINES]:
                detail = _describe_checkpoint(entry.job) if kind == RESUMABLE else entry.detail
                lines.append(f"{kind}: {self.name_run(entry.job)}: {detail}")
            if len(entries) > MAX_LINES:
                lines.append(f"{kind}: {len(entries) - MAX_LINES} more")
        return lines

    def name_run(self, job: Job) -> str:
        """A run's name, with its task and scale where the sweep has several."""
        has_several = len({entry.job.task_and_scale for entry in self.entries}) > 1
        return f"{job.task_and_scale} {job.name}" if has_several else job.name


def _describe_checkpoint(job: Job) -> str:
    step = RunDirectory(job.directory).checkpoint_step()
    return "from its checkpoint" if step is None else f"from step {step}"
