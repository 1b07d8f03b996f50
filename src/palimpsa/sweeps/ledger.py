"""The ledger of a sweep: where each of its runs stands, read from the runs' directories without touching them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory

STATUSES = ("finished", "running", "failed", "missing")
# Lines of one kind below the table.
MOST_LINES = 10
# A missing run that has a checkpoint.
BEGUN = "to be continued"

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
    def place(self) -> str:
        """The task and the scale, as directories are called."""
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

    status: finished; running (another process holds its directory); failed (result.json says so); missing (nothing,
        or interrupted).
    note: who holds it, why it failed, where it goes on; empty where there is nothing to say.
    """

    job: Job
    status: str
    note: str = ""

    @property
    def diverged(self) -> bool:
        """Failed by its own numbers: it would again, so it is an end, at no accuracy."""
        return self.status == "failed" and self.note.startswith(FloatingPointError.__name__)

    @property
    def ended(self) -> bool:
        """Finished or diverged: what is left to be known of it is nothing."""
        return self.status == "finished" or self.diverged


def look(jobs: Iterable[Job]) -> list[Entry]:
    """Where runs stand.

    Raises:
        RunDirectoryError: where a directory holds another config or a damaged file; names the first of them.
    """
    entries, damages = [], []
    for job in jobs:
        try:
            entries.append(_look(job))
        except RunDirectoryError as error:
            damages.append(str(error))
        except OSError as error:
            damages.append(f"results_dir: cannot read {job.directory}: {error.strerror}")
    if damages:
        more = f" (and so for {len(damages) - 1} more of the sweep's directories)" if len(damages) > 1 else ""
        raise RunDirectoryError(f"{damages[0]}{more}")
    return entries


def _look(job: Job) -> Entry:
    directory = RunDirectory(job.directory)
    # Asked before the result is read: a run that ends in between is finished, not missing.
    holder = directory.holder()
    result = directory.inspect(job.config)
    if result is not None:
        _check_result(directory, result)
        if result["status"] == "finished":
            return Entry(job, "finished")
    if holder is not None:
        return Entry(job, "running", holder)
    if result is not None:
        return Entry(job, "failed", " ".join(str(result["error"]).split()))
    return Entry(job, "missing", BEGUN if directory.checkpoint_file.exists() else "")


def _check_result(directory: RunDirectory, result: dict[str, Any]) -> None:
    """What figures are made of must be there: every value of the result, and the curves that it counts."""
    from palimpsa.runs.read import history_length, result_rows
    from palimpsa.runs.schema import ResultError

    file, history = directory.result_file, directory.history_file
    try:
        result_rows(file, result)
        expected = history_length(file, result)
    except ResultError as error:
        raise RunDirectoryError(f"{error}. Delete it to run again") from error
    if result["status"] != "finished" or expected is None or not history.exists():
        return
    content = history.read_bytes()
    found = content.count(b"\n") - 1
    if found != expected or not content.endswith(b"\n"):
        raise RunDirectoryError(
            f"{history}: got {max(found, 0)} whole rows, expected the {expected} that {file.name} counts; was it cut "
            f"short? Delete it to do without these curves, or {file.name} to run again"
        )


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
        return all(entry.ended for entry in self.entries) and not self.num_waiting

    def left(self) -> list[Job]:
        """The runs that are neither finished or diverged nor at work elsewhere."""
        return [entry.job for entry in self.entries if entry.status in ("failed", "missing") and not entry.diverged]

    def of(self, status: str) -> list[Entry]:
        """The runs of one status."""
        return [entry for entry in self.entries if entry.status == status]

    def print(self, console: Console, title: str) -> None:
        """A table with a row a model, and one of sums."""
        rows: dict[Group, dict[str, int]] = {}
        for entry in self.entries:
            row = rows.setdefault(entry.job.group, dict.fromkeys(STATUSES, 0))
            row[entry.status] += 1
        for group, count in self.num_waiting.items():
            rows[group]["waiting"] = count
        columns = [*STATUSES, *(["waiting"] if self.num_waiting else [])]
        table = Table("model", box=None, pad_edge=False, show_footer=len(rows) > 1)
        table.columns[0].footer = "all"
        for column in columns:
            table.add_column(column, justify="right", footer=str(sum(row.get(column, 0) for row in rows.values())))
        table.add_column("runs", justify="right", footer=str(self.num_runs))
        several = len({group[:2] for group in rows}) > 1
        for group, row in rows.items():
            counts = [row.get(column, 0) for column in columns]
            table.add_row("/".join(group if several else group[2:]), *map(str, [*counts, sum(counts)]))
        console.print(title, markup=False, highlight=False, soft_wrap=True)
        console.print(table)

    def lines(self) -> list[str]:
        """The runs that failed, that other processes are at work on, and that go on from a checkpoint."""
        begun = [entry for entry in self.of("missing") if entry.note == BEGUN]
        lines = []
        for kind, entries in (("failed", self.of("failed")), ("running", self.of("running")), (BEGUN, begun)):
            for entry in entries[:MOST_LINES]:
                note = _checkpoint_note(entry.job) if kind == BEGUN else entry.note
                lines.append(f"{kind}: {self.name(entry.job)}: {note}")
            if len(entries) > MOST_LINES:
                lines.append(f"{kind}: {len(entries) - MOST_LINES} more")
        return lines

    def name(self, job: Job) -> str:
        """A run's name, with its task and scale where the sweep has several."""
        several = len({entry.job.place for entry in self.entries}) > 1
        return f"{job.place} {job.name}" if several else job.name


def _checkpoint_note(job: Job) -> str:
    step = RunDirectory(job.directory).checkpoint_step()
    return "from its checkpoint" if step is None else f"from step {step}"
