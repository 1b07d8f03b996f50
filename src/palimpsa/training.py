"""One training run, from a config to a result."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
import time
import traceback
import warnings
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig
from torch import Tensor

from palimpsa.callbacks import Curriculum, History
from palimpsa.checks import check_config, check_device
from palimpsa.config import plain, storable
from palimpsa.data.mqar import MQARBatch
from palimpsa.data.stages import stages_from_config
from palimpsa.errors import ConfigError, RunDirectoryError
from palimpsa.loggers import close_loggers, make_loggers
from palimpsa.mixers.parameters import weight_decay_groups
from palimpsa.model import LanguageModel, build_model
from palimpsa.probe import MemoryProbe
from palimpsa.progress import JobProgress
from palimpsa.provenance import provenance
from palimpsa.recall import query_loss
from palimpsa.run_directory import MODEL_CONFIG_KEY, RESULT_FORMAT, RunDirectory, config_hash


class LitLanguageModel(L.LightningModule):
    """A language model on MQAR: owns the loss and the optimiser. Batches come from the curriculum, on the device.

    Args:
        model: the network.
        model_config: what it was built from, as plain containers; kept in checkpoints, to tell whose they are.
        curriculum: hands out the batch of the current step.
        optimizer_config: the `optimizer` group.
        schedule: "constant" or "cosine" after a linear warm-up.
        max_steps: optimiser steps at most.
    """

    def __init__(
        self,
        model: LanguageModel,
        model_config: dict[str, Any],
        curriculum: Curriculum,
        optimizer_config: Any,
        schedule: str,
        max_steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.model_config = model_config
        self.curriculum = curriculum
        self.optimizer_config = optimizer_config
        self.schedule = schedule
        self.max_steps = max_steps

    def training_step(self, _: Any, batch_idx: int) -> Tensor:
        batch: MQARBatch = self.curriculum.next_batch(self.device)
        loss, _ = query_loss(self.model, batch)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[MODEL_CONFIG_KEY] = self.model_config

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        optimizer = torch.optim.AdamW(
            weight_decay_groups(self.model, config.weight_decay),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        warmup = self.optimizer_config.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, self.max_steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there: a kill in between leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        partial = f"{path}.partial"
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Trains one run, or returns its result where it is finished already; resumes from the last checkpoint.

    Args:
        cfg: configs/train.yaml, composed.

    Returns:
        the content of result.json: see `_result`.

    Raises:
        ConfigError: for a config that cannot be run.
        RunDirectoryError: where the run's directory holds another config or a damaged file.
    """
    check_config(cfg)
    check_device(cfg)
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
    curriculum = Curriculum(
        stages_from_config(cfg.task),
        seed=cfg.seed,
        stop_accuracy=cfg.task.stop_accuracy,
        validation_every=cfg.task.validation_every,
        num_validation=cfg.task.num_validation,
        num_test=cfg.task.num_test,
        log_every=cfg.trainer.log_every,
        history=history,
        progress=progress,
    )

    def end(status: str, error: str | None, summary: dict[str, Any]) -> dict[str, Any]:
        history.write(directory.history_file)
        summary["history_rows"] = len(history.rows)
        result = _result(cfg, config, status, error, curriculum.finished_stages, summary, started, clock)
        directory.write_result(result)
        return result

    try:
        return end("finished", None, _train(cfg, config, directory, name, curriculum))
    except (ConfigError, RunDirectoryError):
        # A damaged checkpoint, say: the directory is left as it is.
        raise
    except Exception as error:
        # A full disk has no room for the news of it either.
        with contextlib.suppress(OSError):
            end("failed", f"{type(error).__name__}: {error}", {"traceback": traceback.format_exc()})
        raise


def _train(
    cfg: DictConfig, config: dict[str, Any], directory: RunDirectory, name: str, curriculum: Curriculum
) -> dict[str, Any]:
    """Runs the trainer to the end of the curriculum; returns the run's summary."""
    if cfg.trainer.num_threads is not None:
        torch.set_num_threads(cfg.trainer.num_threads)
    _quiet_lightning()
    max_steps = sum(stage.max_steps for stage in curriculum.stages)
    probe = MemoryProbe(curriculum, every=cfg.trainer.probe_every, num_examples=cfg.trainer.num_probe)
    checkpoint = ModelCheckpoint(
        dirpath=directory.checkpoint_file.parent,
        filename=directory.checkpoint_file.stem,
        every_n_train_steps=cfg.trainer.checkpoint_every,
        enable_version_counter=False,
    )
    model = build_model(cfg.model, cfg.seed)
    module = LitLanguageModel(model, config["model"], curriculum, cfg.optimizer, cfg.task.schedule, max_steps)
    loggers = make_loggers(cfg.logger, run_dir=directory.path, name=name, run_id=config_hash(config), run_config=config)
    show_bar = cfg.trainer.progress_bar and curriculum.progress.alone
    # The probe comes first: at the last step of a stage it still looks at that stage.
    callbacks: list[L.Callback] = [
        curriculum.history,
        probe,
        curriculum,
        checkpoint,
        *([RichProgressBar()] if show_bar else []),
    ]
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,
        max_steps=max_steps,
        max_epochs=1,
        # Only Lightning's own logging asks for it; the curves are logged by the callbacks.
        log_every_n_steps=cfg.trainer.log_every,
        gradient_clip_val=cfg.optimizer.gradient_clip,
        callbacks=callbacks,
        logger=loggers,
        plugins=[_AtomicCheckpointIO()],
        default_root_dir=directory.path,
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    clock = time.perf_counter()
    try:
        # The loader only counts: the curriculum says what a step trains on, so that a resume loses no position.
        trainer.fit(module, range(max_steps), ckpt_path=directory.readable_checkpoint(module.state_dict(), config))
    except SystemExit as error:
        # Lightning answers Ctrl-C by leaving the process.
        raise KeyboardInterrupt from error
    finally:
        close_loggers(loggers)
    return {
        "state_size": model.state_size,
        "num_parameters": model.num_parameters,
        "num_steps": trainer.global_step,
        "probe_time_share": probe.seconds / (time.perf_counter() - clock),
    }


def _result(
    cfg: DictConfig,
    config: dict[str, Any],
    status: str,
    error: str | None,
    stages: list[dict[str, Any]],
    summary: dict[str, Any],
    started: datetime.datetime,
    clock: float,
) -> dict[str, Any]:
    """The content of result.json: run, stages, metrics, config, provenance (times are of the last session of a run)."""
    return {
        "format": RESULT_FORMAT,
        "status": status,
        "error": error,
        "run": {
            "task": cfg.task.name,
            "scale": cfg.scale.name,
            "model": f"{cfg.model.name}{cfg.variant}",
            "label": f"{cfg.model.label}{cfg.variant.replace('_', ' ')}",
            "lr": cfg.optimizer.lr,
            "seed": cfg.seed,
            "state_size": summary.get("state_size"),
            "num_parameters": summary.get("num_parameters"),
        },
        "stages": stages,
        "metrics": {k: v for k, v in summary.items() if k not in ("state_size", "num_parameters", "traceback")},
        **({"traceback": summary["traceback"]} if "traceback" in summary else {}),
        "config": config,
        "config_hash": config_hash(config),
        "provenance": {
            **provenance(cfg.trainer.accelerator),
            "started": started.isoformat(timespec="seconds"),
            "wall_time_s": round(time.perf_counter() - clock, 2),
        },
    }


def _quiet_lightning() -> None:
    """Keeps Lightning from repeating for each run of a sweep what is meant so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for meant in (
        "(.*dataloader is not resumable|Checkpoint directory)",  # a resume goes on where it was, and its loader counts
        ".*treespec, LeafSpec",  # Lightning's own use of torch
        "Triton is not supported",  # fla's reference code is what the CPU is meant to run
    ):
        warnings.filterwarnings("ignore", message=meant)
