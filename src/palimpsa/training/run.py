"""One training run, from a config to a result."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig
from torch import Tensor

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import plain, storable
from palimpsa.kernels.validation import OperandError
from palimpsa.mixers.parameters import weight_decay_groups
from palimpsa.model.build import build_model
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.directory import MODEL_CONFIG_KEY, RunDirectory, config_hash
from palimpsa.runs.progress import JobProgress
from palimpsa.runs.result import run_result
from palimpsa.tasks.stages import stages_from_config
from palimpsa.training.checkpoint import AtomicCheckpointIO, quiet_lightning
from palimpsa.training.curriculum import Curriculum, History
from palimpsa.training.gpus import lease_gpu, machine_lock, record_gpu_failure
from palimpsa.training.loggers import close_loggers, make_loggers
from palimpsa.training.memory_probe import MemoryProbe
from palimpsa.training.preflight import check_run
from palimpsa.training.step import GradientStep, compile_blocks


class LitLanguageModel(L.LightningModule):
    """A language model on MQAR: owns the loss and the optimiser. Where a run stands is the curriculum's to say.

    Args:
        model: the network.
        model_config: what it was built from, as plain containers; kept in checkpoints, to tell whose they are.
        curriculum: says which stage and step comes next.
        optimizer_config: the `optimizer` group.
        schedule: "constant" or "cosine" after a linear warm-up.
        max_steps: optimiser steps at most.
        use_graphs: run the step as a CUDA graph: see `GradientStep`.
    """

    def __init__(
        self,
        model: LanguageModel,
        model_config: dict[str, Any],
        curriculum: Curriculum,
        optimizer_config: Any,
        schedule: str,
        max_steps: int,
        use_graphs: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.model_config = model_config
        self.curriculum = curriculum
        self.optimizer_config = optimizer_config
        self.schedule = schedule
        self.max_steps = max_steps
        self.parameter_groups = weight_decay_groups(model, optimizer_config.weight_decay)
        self.gradient_step = GradientStep(
            model,
            [parameter for group in self.parameter_groups for parameter in group["params"]],
            seed=curriculum.seed,
            gradient_clip=optimizer_config.gradient_clip,
            use_graphs=use_graphs,
        )

    def on_fit_start(self) -> None:
        if self.device.type == "cuda" and not self.curriculum.done:
            # Libraries choose their kernels by timing what they are called with first: this, not the probe's few
            # contexts. What one process has chosen the next finds on disk; two at a time might round differently.
            with machine_lock("tuning"), self.trainer.precision_plugin.forward_context():
                self.gradient_step.warm_up(self.curriculum.stage, self.device)

    def training_step(self, _: Any, batch_idx: int) -> Tensor:
        return self.gradient_step(self.curriculum.stage, self.curriculum.stage_step, self.device)

    # `training_step` leaves the gradients, clipped: a graph replays them with the loss.
    def optimizer_zero_grad(self, *_: Any) -> None:
        pass

    def backward(self, *_: Any) -> None:
        pass

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[MODEL_CONFIG_KEY] = self.model_config

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        optimizer = torch.optim.AdamW(
            self.parameter_groups,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            # The other one launches a dozen kernels a tensor, or copies lists of them to the GPU.
            fused=self.device.type == "cuda",
        )
        factor = partial(
            learning_rate_factor,
            schedule=self.schedule,
            warmup_steps=config.warmup_steps,
            max_steps=self.max_steps,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def learning_rate_factor(step: int, *, schedule: str, warmup_steps: int, max_steps: int) -> float:
    """The share of the peak learning rate at a step: a linear warm-up, then "constant", or "cosine" down to 0.

    >>> learning_rate_factor(0, schedule="cosine", warmup_steps=2, max_steps=6)
    0.5
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress))


def run(cfg: DictConfig) -> dict[str, Any]:
    """Trains one run, or returns its result where it is finished already; resumes from the last checkpoint.

    Args:
        cfg: configs/train.yaml, composed.

    Returns:
        the content of result.json: see `run_result`.

    Raises:
        ConfigError: for a config that cannot be run.
        RunDirectoryError: where the run's directory holds another config or a damaged file.
    """
    check_run(cfg)
    config = storable(plain(cfg))
    name = f"{cfg.model.name}{cfg.variant} lr {cfg.optimizer.lr:g} seed {cfg.seed}"
    directory = RunDirectory(cfg.run_dir)
    progress = JobProgress.from_environment(name, sum(stage.max_steps for stage in stages_from_config(cfg.task)))
    try:
        with directory.locked():
            finished = directory.claim(config)
            if finished is not None:
                progress.finish("skipped", "finished earlier")
                return finished
            result = _run(cfg, config, directory, name, progress)
    except Exception as error:
        if cfg.trainer.accelerator == "gpu":
            record_gpu_failure(error)
        progress.finish("failed", f"{type(error).__name__}: {error}")
        raise
    tested = [stage for stage in result["stages"] if stage["test_accuracy"] is not None]
    accuracies = [f"L {stage['seq_len']}: {stage['test_accuracy']:.1%}" for stage in tested]
    progress.finish("finished", f"{', '.join(accuracies)} ({result['provenance']['wall_time_s']:.0f} s)")
    return result


def _run(
    cfg: DictConfig, config: dict[str, Any], directory: RunDirectory, name: str, progress: JobProgress
) -> dict[str, Any]:
    """Trains and writes history.csv and result.json, the latter also for a failure."""
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    history = History()
    curriculum = make_curriculum(cfg, history, progress)

    def end(status: str, error: str | None, summary: dict[str, Any]) -> dict[str, Any]:
        history.write(directory.history_file)
        summary["history_rows"] = len(history.rows)
        result = run_result(cfg, config, status, error, curriculum.finished_stages, summary, started, clock)
        directory.write_result(result)
        return result

    try:
        return end("finished", None, train(cfg, config, directory, name, curriculum))
    except (ConfigError, RunDirectoryError):
        # A damaged checkpoint, say: the directory is left as it is.
        raise
    except Exception as error:
        # A full disk has no room for the news of it either.
        with contextlib.suppress(OSError):
            end("failed", f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})
        raise


def make_curriculum(cfg: DictConfig, history: History, progress: JobProgress) -> Curriculum:
    """The stages of a run's config, at their beginning."""
    return Curriculum(
        stages_from_config(cfg.task),
        seed=cfg.seed,
        stop_accuracy=cfg.task.stop_accuracy,
        validation_every=cfg.task.validation_every,
        num_validation=cfg.task.num_validation,
        num_test=cfg.task.num_test,
        log_every=cfg.trainer.log_every,
        history=history,
        progress=progress,
        use_graphs=cfg.trainer.cuda_graphs,
    )


def train(
    cfg: DictConfig,
    config: dict[str, Any],
    directory: RunDirectory,
    name: str,
    curriculum: Curriculum,
    callbacks: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    """Runs the trainer to the end of the curriculum; returns the run's summary.

    Args:
        cfg, config: composed and checked, and the same as plain containers.
        directory: for the checkpoint and the loggers.
        name: of the run, as loggers show it.
        curriculum: of `make_curriculum`.
        callbacks: more, called after the run's own.
    """
    if cfg.trainer.num_threads is not None:
        torch.set_num_threads(cfg.trainer.num_threads)
    quiet_lightning()
    max_steps = sum(stage.max_steps for stage in curriculum.stages)
    probe = MemoryProbe(curriculum, every=cfg.trainer.probe_every, num_examples=cfg.trainer.num_probe)
    checkpoint = ModelCheckpoint(
        dirpath=directory.checkpoint_file.parent,
        filename=directory.checkpoint_file.stem,
        every_n_train_steps=cfg.trainer.checkpoint_every,
        enable_version_counter=False,
    )
    model = build_model(cfg.model, cfg.seed)
    if cfg.trainer.compile:
        compile_blocks(model)
    module = LitLanguageModel(
        model, config["model"], curriculum, cfg.optimizer, cfg.task.schedule, max_steps, cfg.trainer.cuda_graphs
    )
    loggers = make_loggers(cfg.logger, run_dir=directory.path, name=name, run_id=config_hash(config), run_config=config)
    show_bar = cfg.trainer.progress_bar and curriculum.progress.alone
    # The probe comes first: at the last step of a stage it still looks at that stage.
    own = [curriculum.history, probe, curriculum, checkpoint, *([RichProgressBar()] if show_bar else [])]
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=[lease_gpu(config["trainer"]["gpus"])] if cfg.trainer.accelerator == "gpu" else 1,
        precision=cfg.trainer.precision,
        max_steps=max_steps,
        max_epochs=1,
        # Only Lightning's own logging asks for it; the curves are logged by the callbacks.
        log_every_n_steps=cfg.trainer.log_every,
        callbacks=[*own, *callbacks],
        logger=loggers,
        # One process a run, whatever launched it: Slurm's own environment would have it be a rank of many.
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=directory.path,
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    clock = time.perf_counter()
    try:
        # The loader only counts: the curriculum says what a step trains on, so that a resume loses no position.
        trainer.fit(module, range(max_steps), ckpt_path=directory.readable_checkpoint(module.state_dict(), config))
    except OperandError as error:
        # On a CPU the operator looks at its arguments before anyone looks at the loss.
        at = f"after step {trainer.global_step}: a lower optimizer.lr may help"
        raise FloatingPointError(f"palimpsa: {error} {at}") from error
    except SystemExit as error:
        # Lightning answers Ctrl-C by leaving the process.
        raise KeyboardInterrupt from error
    finally:
        close_loggers(loggers)
        module.gradient_step.release()
        curriculum.release()
    return {
        "state_size": model.state_size,
        "num_parameters": model.num_parameters,
        "num_steps": trainer.global_step,
        "probe_time_share": probe.seconds / (time.perf_counter() - clock),
    }
