"""One training run, from a config to a result."""

from __future__ import annotations

import contextlib
import datetime
import time
import traceback
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.process import print_once
from palimpsa.config.schema import TrainConfig, plain
from palimpsa.kernels.validation import OperandError
from palimpsa.mixers.parameters import store_in
from palimpsa.model.build import build_model
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.identity import config_hash
from palimpsa.runs.progress import JobProgress
from palimpsa.runs.result import run_result, status_of
from palimpsa.runs.schema import FINISHED
from palimpsa.tasks.data_digests import with_data_digests
from palimpsa.tasks.task import Task
from palimpsa.training.checkpoint import AtomicCheckpointIO, UnnamedCheckpoint, find_checkpoint, quiet_lightning
from palimpsa.training.compiled import compile_blocks
from palimpsa.training.cuda_graph import Replay
from palimpsa.training.curriculum import Curriculum, Report, ignore
from palimpsa.training.distributed import is_distributed, is_first_rank, trainer_options
from palimpsa.training.gpus import record_gpu_failure
from palimpsa.training.graphed_step import GraphedTrainingModule
from palimpsa.training.history import History, StepLog
from palimpsa.training.loggers import close_loggers, job_type, make_loggers, run_name, tags
from palimpsa.training.memory_probe import MemoryProbe
from palimpsa.training.module import TrainingModule
from palimpsa.training.optimizer import freeze, stored_dtype
from palimpsa.training.preflight import check_run
from palimpsa.training.recording.artifacts import record_run_files
from palimpsa.training.storage.start import fill_from_start, with_start_digest
from palimpsa.training.watch.loss_guard import LossGuard
from palimpsa.training.watch.step_bar import StepBar
from palimpsa.training.watch.stop_signal import StopAtSignal


def run(config: TrainConfig) -> dict[str, Any]:
    """Trains one run, or returns its result where it is finished already; resumes from the last checkpoint.

    Started by torchrun it is one process of a run: the first one writes the files.

    Args:
        config: configs/train.yaml, composed, as `typed` makes it.

    Returns:
        the content of result.json: see `run_result`.

    Raises:
        ConfigError: for a config that cannot be run.
        RunDirectoryError: where the run's directory holds another config or a damaged file.
    """
    config = with_start_digest(with_data_digests(config))
    task = check_run(config)
    directory, stored = RunDirectory(config.run_dir), plain(config)
    progress = JobProgress.from_environment(run_name(config), task.max_steps)
    try:
        # Before the directory is locked: where a run has ended, or is another one, not a byte may change.
        finished = _finished(directory.inspect(stored))
        if not is_first_rank():
            return finished or _train(config, task, directory)
        if finished is None:
            with directory.locked():
                # Another process may have finished it meanwhile.
                finished = directory.claim(stored)
                if finished is None:
                    show_bar = config.trainer.progress_bar and progress.alone
                    result = _train(config, task, directory, progress.update, show_bar=show_bar)
                    progress.finish("finished", _summary(task, result))
                    return result
    except Exception as error:
        if config.trainer.accelerator == "gpu":
            record_gpu_failure(error)
        if not progress.alone:
            progress.finish(status_of(error), f"{type(error).__name__}: {error}")
        raise
    progress.finish("skipped", "finished earlier")
    return finished


def _summary(task: Task[Any, Any], result: dict[str, Any]) -> str:
    headlines, provenance = filter(None, map(task.headline, result["stages"])), result["provenance"]
    headline = f"{', '.join(headlines)} ({provenance['wall_time_s']:.0f} s)"
    return "; ".join([headline, *provenance.get("notes", [])])


def _finished(result: dict[str, Any] | None) -> dict[str, Any] | None:
    return result if result is not None and result["status"] == FINISHED else None


def _train(
    config: TrainConfig,
    task: Task[Any, Any],
    directory: RunDirectory,
    report: Report = ignore,
    *,
    show_bar: bool = False,
) -> dict[str, Any]:
    """Trains and writes history.csv and result.json, the latter also for a failure."""
    if is_first_rank():
        for note in task.notes:
            print_once(note)
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    training = TrainingRun(config, task, directory, report)

    def record(status: str, error: str | None, summary: dict[str, Any]) -> dict[str, Any]:
        stages = training.curriculum.finished_stages
        facts = training.history.write(directory.history_file) if is_first_rank() else {}
        result = run_result(config, status, error, stages, summary | facts, started, clock)
        if is_first_rank():
            directory.write_result(result)
        return result

    try:
        summary = training.fit(show_bar=show_bar)
        if not training.curriculum.done:
            raise RuntimeError(f"training ended with {len(training.curriculum.finished_stages)} stages done")
        return record(FINISHED, None, summary)
    except (ConfigError, RunDirectoryError):
        # A damaged checkpoint, say: the directory is left as it is.
        raise
    except Exception as error:
        # A full disk has no room for the news of it either.
        with contextlib.suppress(OSError):
            record(status_of(error), f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})
        raise


class TrainingRun:
    """Lightning's trainer and everything around it, for one run.

    Args:
        config: configs/train.yaml, composed and checked.
        task: what `build_task` makes of it.
        directory: for the checkpoint and the loggers.
        report: told the step and a few words at every row of the curves, and step 0 with what takes long before it.
    """

    def __init__(
        self, config: TrainConfig, task: Task[Any, Any], directory: RunDirectory, report: Report = ignore
    ) -> None:
        self.config = config
        self.task = task
        if config.trainer.cuda_graphs:
            task.capture = Replay
        self.directory = directory
        self.history = History(directory.history_file)
        self.step_log = StepLog(self.history)
        self.curriculum = Curriculum(
            task,
            self.step_log,
            validation_every=config.task.validation_every,
            log_every=config.trainer.log_every,
            report=report,
            accumulate=config.trainer.accumulate,
        )

    def fit(self, callbacks: Sequence[L.Callback] = (), *, show_bar: bool = False) -> dict[str, Any]:
        """Trains to the end of the task's stages, from the last checkpoint where there is one.

        Args:
            callbacks: more, called after the run's own.
            show_bar: draw a progress bar.

        Returns:
            numbers about the model and the run, for result.json.

        Raises:
            FloatingPointError: the numbers are none any more.
            RunDirectoryError: the checkpoint cannot be read or is of another model.
            KeyboardInterrupt: at Ctrl-C, and of several processes at a signal: see `StopAtSignal`.
        """
        config, trainer_config = self.config, self.config.trainer
        if trainer_config.num_threads is not None:
            torch.set_num_threads(trainer_config.num_threads)
        quiet_lightning()
        model = build_model(config.model, config.seed)
        store_in(model, stored_dtype(config.optimizer))
        num_parameters = model.num_parameters
        if config.optimizer.freeze is not None:
            freeze(model, config.optimizer.freeze)
        model.checkpoint_blocks = trainer_config.checkpoint_blocks
        if trainer_config.compile:
            compile_blocks(model)
        module_class = GraphedTrainingModule if trainer_config.cuda_graphs else TrainingModule
        stored = plain(config)
        guards = [] if trainer_config.spike_sigmas is None else [LossGuard(trainer_config.spike_sigmas)]
        module = module_class(
            model,
            self.task,
            self.curriculum,
            config.optimizer,
            config.task.schedule,
            stored["model"],
            final_lr_share=config.task.final_lr_share,
            accumulate=trainer_config.accumulate,
            guard=next(iter(guards), None),
        )
        probe = MemoryProbe(
            self.curriculum, self.step_log, every=trainer_config.probe_every, num_examples=trainer_config.num_probe
        )
        loggers = self._make_loggers(stored) if is_first_rank() else []
        stop = StopAtSignal(self.directory.checkpoint_file, lambda: self.curriculum.done)
        watching = [*guards, *callbacks, *([stop] if is_distributed() else [])]
        trainer, checkpoints = self._make_trainer(probe, loggers, watching, show_bar)
        clock = time.perf_counter()
        try:
            # The loader only counts: the curriculum says what a step trains on, so that a resume loses no position.
            own = [self.history, self.curriculum, *guards]
            checkpoint, damages = find_checkpoint(self.directory, module.state_dict(), stored, own)
            checkpoints.damaged = list(damages)
            if checkpoint is None and config.start.weights is not None:
                fill_from_start(model, config.start)
            trainer.fit(module, range(self.task.max_steps * trainer_config.accumulate), ckpt_path=checkpoint)
            keeps_weights = trainer_config.keep_final or config.logger.artifacts
            if (self.task.keeps_final_weights or keeps_weights) and self.curriculum.done:
                trainer.save_checkpoint(self.directory.checkpoint_file)
            if config.logger.artifacts and self.curriculum.done:
                self._record_files(loggers)
        except OperandError as error:
            # On a CPU the operator looks at its arguments before anyone looks at the loss.
            at = f"after step {trainer.global_step}: a lower optimizer.lr may help"
            raise FloatingPointError(f"palimpsa: {error} {at}") from error
        except SystemExit as error:
            # Lightning answers Ctrl-C by leaving the process.
            raise KeyboardInterrupt from error
        finally:
            close_loggers(loggers)
            module.release()
        stop.interrupt()
        return {
            "state_size": model.state_size,
            "num_parameters": num_parameters,
            "num_steps": trainer.global_step,
            "notes": list(damages.values()),
            "probe_time_share": probe.seconds / (time.perf_counter() - clock),
        }

    def _make_loggers(self, stored: dict[str, Any]) -> list[Logger]:
        return make_loggers(
            self.config.logger,
            run_dir=self.directory.path,
            name=run_name(self.config),
            run_id=config_hash(stored),
            run_config=stored,
            job_type=job_type(self.config),
            tags=tags(self.config),
        )

    def _record_files(self, loggers: list[Any]) -> None:
        for logger in loggers:
            self.history.write(self.directory.history_file)
            checkpoint = self.directory.checkpoints.newest_first()[0]
            stages, run = self.curriculum.finished_stages, logger.experiment
            record_run_files(run, run_name(self.config), checkpoint, self.directory.history_file, stages)

    def _make_trainer(
        self, probe: MemoryProbe, loggers: list[Logger], callbacks: Sequence[L.Callback], show_bar: bool
    ) -> tuple[L.Trainer, AtomicCheckpointIO]:
        config = self.config.trainer
        checkpoint = UnnamedCheckpoint(
            dirpath=self.directory.checkpoint_file.parent,
            filename=self.directory.checkpoint_file.stem,
            every_n_train_steps=config.checkpoint_every,
            enable_version_counter=False,
        )
        # The probe comes first: at the last step of a stage it still looks at that stage.
        bars = [StepBar(lambda: self.history.newest)] if show_bar else []
        own = [self.history, probe, self.curriculum, checkpoint, *bars]
        options = trainer_options(config.accelerator, config.gpus, config.strategy)
        checkpoints = AtomicCheckpointIO(self.directory, config_hash(plain(self.config)))
        trainer = L.Trainer(
            **{**options, "plugins": [checkpoints, *options["plugins"]]},
            accelerator=config.accelerator,
            precision=config.precision,  # pyright: ignore[reportArgumentType]
            max_steps=self.task.max_steps,
            accumulate_grad_batches=config.accumulate,
            max_epochs=1,
            # Only Lightning's own logging asks for it; the curves are logged by the callbacks.
            log_every_n_steps=config.log_every,
            callbacks=[*own, *callbacks],
            logger=loggers,
            default_root_dir=self.directory.path,
            enable_progress_bar=show_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        return trainer, checkpoints
