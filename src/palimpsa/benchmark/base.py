"""The interface of a benchmark: which rows it has, how one is measured, and how the results are shown.

`run.run_benchmark` goes through one. `cases` has the operators' and `training_runs` training's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from palimpsa.benchmark.store import Cells, Store, Tables, device_slug
from palimpsa.runs.provenance import provenance, versions_text

if TYPE_CHECKING:
    from rich.table import Table

RowT = TypeVar("RowT")


class RowFailedError(Exception):
    """A row without a result: its name and why, in one line. The others are still worth measuring."""


class WrongResultError(Exception):
    """Something computes another thing than its definition: nothing is worth measuring before that is mended."""


class Benchmark(ABC, Generic[RowT]):
    """One kind of benchmark on one device: rows of type RowT, which `str` names.

    Args:
        rows: all that the command line asks for, in the order in which they are measured.
        accelerator: "cpu" or "gpu".
        settings: the cells, beside where and with what it was measured, that all rows share.
        results_dir: the folder of the CSV files and figures.
        fresh: throw away the device's rows that are there.

    Attributes:
        tables: what the CSV files hold.
        packages: those whose versions stand in every row.
        summary_formats: by column, how a row's line tells it, in the line's order.
        store: the device's CSV files.

    Raises:
        ConfigError: the files hold rows that were measured otherwise.
    """

    tables: ClassVar[Tables]
    packages: ClassVar[tuple[str, ...]]
    summary_formats: ClassVar[dict[str, str]]

    def __init__(
        self, rows: Sequence[RowT], *, accelerator: str, settings: dict[str, Any], results_dir: str, fresh: bool
    ) -> None:
        self.rows = rows
        self.folder = Path(results_dir)
        found = provenance(accelerator)
        origin = {name: found[name] for name in ("device", "git_revision", "git_dirty", "command")}
        origin["versions"] = versions_text(found, self.packages)
        self.device_slug = "cpu" if accelerator == "cpu" else device_slug(origin["device"])
        self.store = Store(self.tables, self.folder, self.device_slug, origin | settings, fresh=fresh)

    def stored(self, row: RowT) -> Cells | None:
        """What the CSV file has of a row; None before it is measured."""
        kind, key = self.address(row)
        return self.store.find(kind, **key)

    @abstractmethod
    def headlines(self) -> list[str]:
        """What is measured, on what and with which versions: lines to print first."""

    @abstractmethod
    def address(self, row: RowT) -> tuple[str, dict[str, Any]]:
        """The kind of CSV file that a row goes to, and the cells that tell it from the others there."""

    @abstractmethod
    def measure(self, row: RowT, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Measures a row.

        Args:
            on_step: told, now and then, how many of `num_steps` are done.

        Returns:
            its cells, beside those that all rows share; those of `address` may be left out.

        Raises:
            RowFailedError: it has no result.
            WrongResultError: its result is wrong, and the benchmark is to stop.
        """

    def num_steps(self, row: RowT) -> int | None:
        """The steps that `measure` counts; None where it tells none."""
        return None

    def summary(self, cells: dict[str, Any]) -> str:
        """A row's results in a line."""
        known = {name: value for name, value in cells.items() if value is not None}
        return ", ".join(form.format(known[name]) for name, form in self.summary_formats.items() if name in known)

    def table(self) -> Table | None:
        """The results as a table for the terminal; None where the lines above it say enough."""
        return None

    @abstractmethod
    def draw(self) -> list[Path]:
        """Draws the figures from the CSV files; returns their paths."""
