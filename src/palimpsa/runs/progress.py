"""Progress of a sweep: every job writes where it stands to a small file, the launching process draws the bars."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from palimpsa.config.private import hide_private
from palimpsa.config.process import plain_console
from palimpsa.runs.files import read_regular
from palimpsa.runs.schema import DIVERGED, FAILED

DIRECTORY_VARIABLE = "PALIMPSA_PROGRESS_DIR"
# Beside the jobs' files: how many jobs the sweep has.
NUM_JOBS_FILE = "num_jobs"
REFRESH_S = 0.5


class JobProgress:
    """Where one run stands. Writes to `directory`; without one it only says how the run ended.

    Args:
        directory: the sweep's progress directory.
        name: of the run, as a person would say it.
        total: optimiser steps at most.
    """

    def __init__(self, directory: str | None, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.file = None if directory is None else Path(directory) / f"{uuid.uuid4().hex}.json"

    @property
    def alone(self) -> bool:
        """Whether no sweep draws this run's bar."""
        return self.file is None

    @classmethod
    def from_environment(cls, name: str, total: int) -> JobProgress:
        """Reports to the sweep that launched this process, if one did."""
        return cls(os.environ.get(DIRECTORY_VARIABLE), name, total)

    def update(self, step: int, note: str) -> None:
        """Tells the step and a few words about it; before the first, of step 0, by a line if no sweep draws a bar."""
        self._write("running", step, note)
        if self.alone and step == 0:
            plain_console(stderr=True).print(f"{self.name}: {note}", soft_wrap=True)

    def finish(self, status: str, note: str) -> None:
        """Tells how it ended: "skipped", or a status of `runs.schema`. A log may hold it: nothing private is told."""
        note = hide_private(note)
        self._write(status, self.total, note)
        if self.alone:
            plain_console(stderr=True).print(f"{self.name}: {status}, {note}", soft_wrap=True)

    def _write(self, status: str, step: int, note: str) -> None:
        # A sweep that ended takes its directory away; a straggler has nobody left to tell.
        if self.file is None or not self.file.parent.is_dir():
            return
        temporary = self.file.with_suffix(".tmp")
        # A full disk may end a run, but not for want of a bar.
        with contextlib.suppress(OSError):
            now = {"name": self.name, "status": status, "step": step, "total": self.total, "note": note}
            temporary.write_text(json.dumps({**now, "written": time.time_ns()}), encoding="utf-8")
            temporary.replace(self.file)


class SweepProgress:
    """A bar for the sweep and one for each running job; on a plain stream a line for each job that ends.

    A context manager around the launch. Afterwards `failures` holds a line for each failed job, and
    `num_ended` counts the jobs that ended, one way or the other.

    Args:
        num_jobs: jobs of the sweep.
        directory: for the jobs' files, emptied first and removed at the end; on a file system that their machines
            share. None: a temporary one of this machine's.
    """

    def __init__(self, num_jobs: int, directory: Path | None = None) -> None:
        self.num_jobs = num_jobs
        self.failures: list[str] = []
        self.num_ended = 0
        self._lines: deque[str] = deque()
        if directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="palimpsa-progress-"))
        else:
            # What a sweep that was killed has left there would be counted again.
            self._directory = directory.absolute()
            shutil.rmtree(self._directory, ignore_errors=True)
            # A full disk costs the bars, not the sweep.
            with contextlib.suppress(OSError):
                self._directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            (self._directory / NUM_JOBS_FILE).write_text(str(num_jobs), encoding="utf-8")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SweepProgress:
        os.environ[DIRECTORY_VARIABLE] = str(self._directory)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.environ.pop(DIRECTORY_VARIABLE, None)
        shutil.rmtree(self._directory, ignore_errors=True)

    def print_lines(self, lines: Sequence[str]) -> None:
        """Prints lines after those of the jobs that have ended; returns when they are printed."""
        self._lines.extend(lines)
        while self._lines and self._thread.is_alive():
            time.sleep(REFRESH_S / 10)

    def _watch(self) -> None:
        console = plain_console()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            sweep = progress.add_task("sweep", total=self.num_jobs, note="")
            bars: dict[str, TaskID] = {}
            ended: set[str] = set()
            while True:
                # Looked at before the files: what was written before the stop is read once more after it.
                stopping = self._stop.wait(REFRESH_S)
                num_lines = len(self._lines)
                for name, job in read_jobs(self._directory).items():
                    if name in ended:
                        continue
                    if job["status"] == "running":
                        if name not in bars:
                            bars[name] = progress.add_task(job["name"], total=job["total"], note="")
                        progress.update(bars[name], completed=job["step"], note=job["note"])
                        continue
                    ended.add(name)
                    self.num_ended += 1
                    if job["status"] in (FAILED, DIVERGED):
                        self.failures.append(f"{job['name']}: {job['note']}")
                    if name in bars:
                        progress.remove_task(bars.pop(name))
                    # Which runs follow a choice, or are told of twice, is known only then.
                    total = max(self.num_jobs, len(ended))
                    progress.update(sweep, completed=len(ended), total=total)
                    console.print(
                        f"[{len(ended)}/{total}] {job['name']}: {job['status']}, {job['note']}", soft_wrap=True
                    )
                for _ in range(num_lines):
                    console.print(self._lines.popleft(), soft_wrap=True)
                if stopping:
                    return


def read_jobs(directory: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a progress directory by file, in the order in which they last wrote: ended ones as they ended.

    A file that is no job's, or cannot be read at the moment, is left out.
    """
    jobs: dict[str, dict[str, Any]] = {}
    for file in directory.glob("*.json"):
        # On a network's file system a file that is replaced may not be there for a moment.
        with contextlib.suppress(OSError, ValueError):
            job = json.loads(read_regular(file))
            if isinstance(job, dict) and isinstance(job.get("written"), int):
                jobs[file.name] = job
    return dict(sorted(jobs.items(), key=lambda item: item[1]["written"]))


def read_num_jobs(directory: Path) -> int | None:
    """How many jobs the sweep of a progress directory has; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        return int((directory / NUM_JOBS_FILE).read_text(encoding="utf-8"))
    return None
