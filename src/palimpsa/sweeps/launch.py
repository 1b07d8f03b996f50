"""Where Hydra meets a `Sweep`: its launchers run the jobs, each in a process that composes its config and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.process import prepare_process
from palimpsa.config.schema import TrainConfig, register_schema, typed
from palimpsa.runs.files import write_atomic
from palimpsa.sweeps.child_process import run_in_child_process
from palimpsa.sweeps.launchers import worker_ends_with_sweep
from palimpsa.sweeps.ledger import Job
from palimpsa.training.gpus import gpu_is_unusable

# A launcher's worker knows of this module alone, and composes the config of its run itself.
register_schema()


def train_task(cfg: DictConfig) -> None:
    """What a launcher calls for each run, in a process of its own or in this one."""
    prepare_process()
    with worker_ends_with_sweep():
        train(typed(cfg))


def train(config: TrainConfig) -> None:
    """One run, in this process unless its GPU is unusable."""
    if gpu_is_unusable():
        run_in_child_process(config)
    else:
        # Here and not above: torch.
        from palimpsa.training.run import run

        run(config)


class HydraLaunch:
    """Runs jobs by hydra/launcher.

    Args:
        config: of the sweep, composed with Hydra's own part, which it leaves in multirun.yaml.
        context: what the configs of its runs are composed with.
        directory: of the sweep.
    """

    def __init__(self, config: DictConfig, context: HydraContext, directory: Path) -> None:
        self.config = config
        self.context = context
        self.directory = directory
        self._launcher: Launcher | None = None
        self._num_launched = 0

    def __call__(self, jobs: Sequence[Job]) -> list[str | None]:
        """Runs jobs, at most hydra.sweeper.max_batch_size at a time; returns why each failed, None where it did not.

        Raises:
            RunDirectoryError: the sweep's directory cannot be written.
            Exception: of a launcher that stopped before its runs ended.
        """
        if self._launcher is None:
            try:
                write_atomic(self.directory / "multirun.yaml", OmegaConf.to_yaml(self.config))
            except OSError as error:
                raise RunDirectoryError(f"results_dir: cannot write to {self.directory}: {error.strerror}") from error
            self._launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self.context, task_function=train_task, config=self.config
            )
        reasons: list[str | None] = []
        size = self.config.hydra.sweeper.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            batch = [list(job.overrides) for job in jobs[start : start + size]]
            for done in self._launcher.launch(batch, initial_job_idx=self._num_launched):
                error = done._return_value if done.status == JobStatus.FAILED else None
                reasons.append(error and f"{type(error).__name__}: {' '.join(str(error).split())}")
            self._num_launched += len(batch)
        return reasons
