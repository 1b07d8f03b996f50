"""How far a sweep is: the files by which its jobs tell where they stand (palimpsa.runs.progress)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from palimpsa.runs.progress import read_jobs, read_num_jobs
from palimpsa.runs.schema import DIVERGED, FAILED

FOLDER = ".progress"


def read_progress(roots: list[Path]) -> dict[str, Any]:
    """What the page says of the sweep that is at work below these folders.

    Returns total (jobs, None where nobody says), ended, jobs (those at work: name, step, total, note), failed (name and
    reason); jobs and failed are empty where no sweep is at work.
    """
    total, ended, at_work, failed = 0, 0, [], []
    for root in roots:
        folder = root / FOLDER
        # Not Path.is_dir, which raises where one may not look: who lists the run directories tells of that.
        if not os.path.isdir(folder):
            continue
        jobs = read_jobs(folder)
        num_ended = 0
        for job in jobs.values():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if job["status"] == "running":
                    step, steps = int(job["step"]), int(job["total"])
                    at_work.append({"name": str(job["name"]), "step": step, "total": steps, "note": str(job["note"])})
                    continue
                num_ended += 1
                if job["status"] in (FAILED, DIVERGED):
                    failed.append([str(job["name"]), str(job["note"])])
        ended += num_ended
        total += max(read_num_jobs(folder) or len(jobs), num_ended)
    at_work.sort(key=lambda job: job["name"])
    return {"total": total, "ended": ended, "jobs": at_work, "failed": failed}
