"""The dashboard's folder, built of whatever there is; what is missing or cannot be read is told on the page."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from palimpsa.analysis.dashboard.committed import Cache, Problems, Source, read_committed
from palimpsa.analysis.dashboard.experiments import describe_experiments, look_of
from palimpsa.analysis.dashboard.files import PLOTLY, Folder
from palimpsa.analysis.dashboard.language import describe_finetuning, describe_language
from palimpsa.analysis.dashboard.memory_page import write_page
from palimpsa.analysis.dashboard.privacy import Scrubber
from palimpsa.analysis.dashboard.progress import read_progress
from palimpsa.analysis.dashboard.run_folders import RUNNING, RunFolder, read_run_folders
from palimpsa.analysis.dashboard.runs import (
    COLUMNS,
    RUN_DIRECTORIES,
    PageRun,
    config_group,
    gather_runs,
    local_source,
    run_page,
    shared_configs,
    table_row,
)
from palimpsa.analysis.dashboard.speed import describe_speed
from palimpsa.analysis.dashboard.wandb_files import OfflineRun, read_offline_runs
from palimpsa.analysis.style import MODEL_STYLES
from palimpsa.runs.offline_wandb import nameless_sync_line
from palimpsa.runs.schema import DIVERGED, FAILED

# Pictures that no runs stand behind: file and title.
PICTURES = {
    "illustrations/figure1.png": "Figure 1: the blocks",
    "illustrations/figure4.png": "Figure 4: what a memory recalls",
    "illustrations/capacity.png": "How many pairs a memory holds",
    "calibration/calibration_h200.png": "Calibration: does the variance know of errors? (h200 scale)",
    "calibration/calibration_laptop.png": "Calibration: does the variance know of errors? (laptop scale)",
}
# Whose colours single heads and runs have, in this order.
PALETTE = (
    *("palimpsa_d", "palimpsa_m", "gla", "gated_deltanet", "mamba2"),
    *("palimpsa_d_nometa", "transformer", "palimpsa_d_scalar"),
)


@dataclass
class Built:
    """What was built: the page, how many runs it has, and what was missing or could not be read."""

    page: Path
    num_runs: int
    problems: list[tuple[str, str, str]]


@dataclass
class Dashboard:
    """A folder of pages that is built again and again, each time of what has changed.

    Args:
        results: folder of the folders of results.
        out: of the pages.
        run_roots: where run directories lie; offline_roots: where offline W&B runs do.
        watched: whether the page is to look for new data by itself.
    """

    results: Path
    out: Path
    run_roots: Sequence[Path]
    offline_roots: Sequence[Path]
    watched: bool = False
    scrubber: Scrubber = field(default_factory=Scrubber.of_this_machine)

    def __post_init__(self) -> None:
        self.folder = Folder(self.out, self.scrubber)
        self._cache = Cache()
        self._described: dict[str, tuple[Any, list[dict[str, Any]], list[Any]]] = {}
        self._written: dict[str, tuple[Any, ...]] = {}
        self._last, self._built = "", ""

    def build(self) -> Built:
        """Reads everything and writes what is new. Raises OSError: the folder cannot be written."""
        problems = Problems()
        self.folder.written.clear()
        sources = read_committed(self.results, problems, self._cache)
        folders = read_run_folders(list(self.run_roots), problems, self._cache)
        offline, hosts = read_offline_runs(list(self.offline_roots), problems, self._cache)
        self.scrubber.add_names(hosts)
        runs = gather_runs(sources, folders, offline, self.scrubber)
        if not runs:
            problems.add("overview", f"no run in {self.results}/*/runs.csv and no run directory", "make mqar")
        experiments = self._describe(sources, runs, problems)
        shared = shared_configs(runs)
        for group, config in shared.items():
            self.folder.write_data(f"data/configs/{group}.js", f"config {group}", config)
        for run in runs:
            self._write_run(run, shared[config_group(run)])
        index = {
            "runs": {"columns": list(COLUMNS), "rows": [table_row(run) for run in runs]},
            "experiments": experiments,
            "palette": [look_of(MODEL_STYLES[model]) for model in PALETTE],
            "pictures": self._copy_pictures(problems),
            "speed": describe_speed(self.results, problems),
            "language": describe_language(self.results, problems),
            "finetuning": describe_finetuning(self.results, problems),
            "memory": self._write_memory_pages(problems),
            "wandb": [self._offline_row(run, problems) for run in offline],
            "progress": self._progress(runs),
            "watched": self.watched,
        }
        index["problems"] = problems.rows
        self._write_index(index)
        self.folder.write_page()
        for name in ("data/runs", "data/configs", "data/dynamics"):
            self.folder.remove_others(name)
        return Built(self.out / "index.html", len(runs), problems.rows)

    def _write_index(self, index: dict[str, Any]) -> None:
        """The index, and a few bytes that say when it changed, which a page asks for again and again."""
        content = json.dumps(index, default=str, sort_keys=True)
        if content != self._last:
            self._last = content
            self._built = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.folder.write_data("data/index.js", "index", index | {"built": self._built})
        self.folder.write_data("data/version.js", "version", {"built": self._built, "watched": self.watched})

    def _write_run(self, run: PageRun, shared: list[list[str]]) -> None:
        """Writes a run's file, unless it was written of the very same curves, directory and config before."""
        name = f"data/runs/{run.id}.js"
        known = self._written.get(run.id)
        # Frames cannot be compared by ==.
        if known is not None and known[0] is run.curve and known[1:] == (run.folder, run.rows, run.config, shared):
            self.folder.keep(name)
            return
        self.folder.write_data(name, f"run {run.id}", run_page(run, shared))
        self._written[run.id] = (run.curve, run.folder, run.rows, run.config, shared)

    def _describe(self, sources: Sequence[Source], runs: Sequence[PageRun], problems: Problems) -> list[dict[str, Any]]:
        """The experiments of all sources; their learning dynamics go to files of their own."""
        own_folders = [run.folder for run in runs if run.source == RUN_DIRECTORIES and run.folder is not None]
        described: list[dict[str, Any]] = []
        for source in [*sources, local_source(runs)]:
            folders = own_folders if source.name == RUN_DIRECTORIES else []
            described += self._describe_source(source, runs, folders, problems)
        described.sort(key=lambda experiment: -experiment["num_runs"])
        for place, experiment in enumerate(described):
            dynamics = experiment["dynamics"]
            experiment["dynamics"] = place if dynamics else None
            if dynamics:
                self.folder.write_data(f"data/dynamics/{place}.js", f"dynamics {place}", dynamics)
        return described

    def _describe_source(
        self, source: Source, runs: Sequence[PageRun], folders: Sequence[RunFolder], problems: Problems
    ) -> list[dict[str, Any]]:
        """What `describe_experiments` says, once for the same rows: means over seeds take a second."""
        ids = {run.key: run.id for run in runs if run.source == source.name}
        # A committed frame that was not read anew is the same object; of directories the rows are compared.
        stamp = [id(source.rows), id(source.curves), ids]
        if source.name == RUN_DIRECTORIES:
            stamp = [[str(run.path) for run in folders if run.has_ended], ids, len(source.curves)]
        known = self._described.get(source.name)
        if known is None or known[0] != stamp:
            own = Problems()
            experiments = describe_experiments(source, ids, own, folders)
            self._described[source.name] = known = (stamp, experiments, own.rows)
        for row in known[2]:
            problems.add(*row)
        return [dict(experiment) for experiment in known[1]]

    def _copy_pictures(self, problems: Problems) -> list[dict[str, str]]:
        pictures = []
        for name, title in PICTURES.items():
            content = problems.attempt("overview", partial(_content, self.results / name), None)
            if content is not None:
                self.folder.write_bytes(f"pictures/{Path(name).name}", content)
                pictures.append({"file": f"pictures/{Path(name).name}", "title": title})
        return pictures

    def _write_memory_pages(self, problems: Problems) -> list[dict[str, Any]]:
        """Every folder of memory/ with an inspection: its name, its page where one can be made, and its picture."""
        inspections = []
        for file in sorted((self.results / "memory").glob("*/inspection.json")):
            name = file.parent.name
            # Whatever the folder is called, and the same address when there are more.
            place = f"memory/{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"
            entry: dict[str, Any] = {"name": name, "page": None, "picture": None}
            page = self.out / f"{place}.html"
            problems.attempt("memory", partial(self._write_memory_page, file, page), None)
            entry["page"] = f"{place}.html" if page.exists() else None
            picture = problems.attempt("memory", partial(_content, file.parent / "inspection.png"), None)
            if picture is not None:
                self.folder.write_bytes(f"{place}.png", picture)
                entry["picture"] = f"{place}.png"
            inspections.append(entry)
        if not inspections:
            command = "python scripts/inspect_memory.py CHECKPOINT"
            problems.add("memory", f"{self.results / 'memory'}: no memory has been inspected yet", command)
        return inspections

    def _write_memory_page(self, inspection: Path, page: Path) -> None:
        """One inspection's page, where the inspection is another one than at the last build."""
        page.parent.mkdir(parents=True, exist_ok=True)
        write = partial(write_page, inspection.parent, page, f"../{PLOTLY}", self.scrubber, "../index.html#memory")
        self._cache.get("memory", page, [inspection], write)

    def _offline_row(self, run: OfflineRun, problems: Problems) -> list[Any]:
        """id, name, project, group, files, rows of the history, whether it has ended, the command that uploads it.

        Instead of the command an empty text where it is uploaded.
        """
        line = "" if run.is_uploaded else nameless_sync_line(run.folders)
        if self.scrubber.text(line) != line:
            what = f"{run.name}: its path has a name that no page tells, so the line that uploads it is not whole here"
            problems.add("wandb", what, "python scripts/create_workspace.py --offline")
        numbers = [len(run.folders), len(run.history), run.ended]
        return [run.run_id, run.name, run.project, run.group, *numbers, line]

    def _progress(self, runs: Sequence[PageRun]) -> dict[str, Any]:
        """The sweep at work, and of the run directories how many stand where."""
        own = [run for run in runs if run.folder is not None]
        statuses = [run.folder.status for run in own if run.folder is not None]
        progress = read_progress(list(self.run_roots))
        if RUNNING not in statuses:
            # A sweep that was killed has left them: a job at work holds its directory.
            progress["jobs"] = []
        not_finished = [run for run in own if run.rows[0].get("status") in (FAILED, DIVERGED)]
        progress["failed"] = _not_told(progress["failed"], not_finished)
        return {
            **progress,
            "statuses": [[status, statuses.count(status)] for status in sorted(set(statuses))],
            "not_ended": [run.id for run in own if run.folder is not None and not run.folder.has_ended],
            "not_finished": [run.id for run in not_finished],
        }


def _not_told(failed: Sequence[list[str]], runs: Sequence[PageRun]) -> list[list[str]]:
    """The failures of a sweep, name and reason, that no run's directory tells too."""
    told, rest = Counter(run.rows[0].get("error") for run in runs), []
    for name, reason in failed:
        if told[reason] > 0:
            told[reason] -= 1
        else:
            rest.append([name, reason])
    return rest


def _content(file: Path) -> bytes | None:
    """What a file holds, None where there is none. Raises OSError: it cannot be read."""
    return file.read_bytes() if file.is_file() else None


def size_of(folder: Path) -> int:
    """The bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
