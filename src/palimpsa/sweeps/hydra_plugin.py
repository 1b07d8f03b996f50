"""Where Hydra meets a `Sweep`: the sweeper of configs/hydra/sweeper/phased.yaml, which hands jobs to a launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from palimpsa.config.errors import RunDirectoryError
from palimpsa.sweeps.ledger import Job
from palimpsa.sweeps.sweep import PrintLines, Sweep

# Hydra takes plugins from the package of this name alone, so that is where the class is listed.
SWEEPER_NAME = "hydra_plugins.palimpsa.PhasedSweeper"

_current_sweep: ContextVar[tuple[Sweep, PrintLines]] = ContextVar("current_sweep")


@contextlib.contextmanager
def current_sweep(sweep: Sweep, print_lines: PrintLines) -> Iterator[None]:
    """Within it, Hydra's multirun carries out this sweep, and prints with `print_lines` what is chosen."""
    token = _current_sweep.set((sweep, print_lines))
    try:
        yield
    finally:
        _current_sweep.reset(token)


class PhasedSweeper(Sweeper):
    """Hydra's plugin for the current `Sweep`.

    Args:
        params, selection_seeds: have become the sweep's when the command line was planned.
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
        sweep, print_lines = _current_sweep.get()
        try:
            OmegaConf.save(self.config, sweep.directory / "multirun.yaml")
        except OSError as error:
            raise RunDirectoryError(f"results_dir: cannot write to {sweep.directory}: {error.strerror}") from error
        sweep.run(self._launch, print_lines)

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
