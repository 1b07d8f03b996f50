"""The walk through a task's stages: where a run stands, and when a stage ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L

from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.task import Metrics, Stage, Task
from palimpsa.training.history import StepLog
from palimpsa.training.watch.step_bar import newest_numbers
from palimpsa.training.watch.throughput import StepCosts

# Told the optimiser step and a few words about it.
Report = Callable[[int, str], None]


def ignore(step: int, words: str) -> None:
    """A `Report` that nobody reads."""


class Curriculum(L.Callback):
    """Walks through the stages of a task: validates, ends each when it is solved or at its cap, and tests it once.

    Args:
        task: whose stages; weights are carried over.
        step_log: of the training steps; each validation adds a row to those of every `log_every` steps.
        validation_every, log_every: optimiser steps between them, counted within a stage.
        report: told of every row, and of what takes long before step 1 as step 0.
        accumulate: Lightning's batches to a step.

    Attributes:
        stage_index, stage_step: the stage, and how many steps of it are done.
        finished_stages: what result.json keeps of each.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        step_log: StepLog,
        *,
        validation_every: int,
        log_every: int,
        report: Report,
        accumulate: int = 1,
    ) -> None:
        self.task = task
        self.step_log = step_log
        self.validation_every = validation_every
        self.log_every = log_every
        self.report = report
        self.accumulate = accumulate
        self._loss_so_far: Any = 0.0
        self.stage_index = 0
        self.stage_step = 0
        # The first row of a stage whose loss is half of what knowing nothing costs.
        self.plateau_exit_step: int | None = None
        self.finished_stages: list[dict[str, Any]] = []

    @property
    def stage(self) -> Stage:
        return self.task.stages[self.stage_index]

    @property
    def num_stages(self) -> int:
        return len(self.task.stages)

    @property
    def done(self) -> bool:
        return len(self.finished_stages) == self.num_stages

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.task.reports_costs:
            flops = network(pl_module).training_flops_per_token(self.stage.context)
            self.step_log.costs = StepCosts(pl_module.device, flops, trainer.world_size)
        self.step_log.restart_clock()
        if self.done:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        if self.accumulate > 1:
            # Of a step's parts Lightning has each divided by their number.
            self._loss_so_far = self._loss_so_far + loss.detach()
            if not self.ends_step(batch_idx):
                return
            loss, self._loss_so_far = self._loss_so_far, 0.0
        self.stage_step += 1
        self.step_log.add(loss, self.stage.tokens_per_step)
        at_cap = self.stage_step >= self.stage.max_steps
        validates = at_cap or self.stage_step % self.validation_every == 0
        # Also before a validation, which may end the stage: no step's loss is dropped.
        if validates or self.stage_step % self.log_every == 0:
            self._log(trainer)
        if validates:
            started = time.perf_counter()
            self._validate(trainer, pl_module, at_cap)
            self.step_log.pause(time.perf_counter() - started)

    def ends_step(self, batch_idx: int) -> bool:
        """Whether the optimiser has taken its step with this one of Lightning's batches."""
        return (batch_idx + 1) % self.accumulate == 0

    def _log(self, trainer: L.Trainer) -> None:
        loss, ignorance = self.step_log.write_row(trainer, self.stage), self.stage.ignorance_loss
        if self.plateau_exit_step is None and ignorance is not None and loss < 0.5 * ignorance:
            self.plateau_exit_step = self.stage_step
        shown = [f"{name} {value}" for name, value in newest_numbers(self.step_log.history.newest).items()]
        self.report(trainer.global_step, ", ".join([self.stage.label, *shown]))

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> Metrics:
        with trainer.precision_plugin.forward_context():
            metrics = self.task.evaluate(network(pl_module), split, self.stage, pl_module.device)
        # Processes whose kernels round otherwise must not end a stage at different steps.
        return trainer.strategy.broadcast(metrics)

    def _validate(self, trainer: L.Trainer, pl_module: L.LightningModule, at_cap: bool) -> None:
        validation = self._evaluate(trainer, pl_module, "validation")
        named = {f"validation_{name}": value for name, value in validation.items()}
        self.step_log.history.record(trainer, {"stage": self.stage_index, **named})
        solved = self.task.is_solved(validation)
        if solved or at_cap:
            self._end_stage(trainer, pl_module, validation, self.task.metric if solved else "cap")

    def _end_stage(self, trainer: L.Trainer, pl_module: L.LightningModule, validation: Metrics, ended_by: str) -> None:
        # The only place that touches the test split.
        test = self._evaluate(trainer, pl_module, "test") if self.stage.is_tested else None
        self.finished_stages.append(
            {
                "stage": self.stage_index,
                "steps": self.stage_step,
                "ended_by": ended_by,
                "plateau_exit_step": self.plateau_exit_step,
                **self.task.stage_result(self.stage, validation, test),
            }
        )
        if test is not None:
            name = f"test_{self.task.metric}/{self.stage.label.replace(' ', '')}"
            self.step_log.history.record(trainer, {name: test[self.task.metric]})
        self.stage_step, self.plateau_exit_step = 0, None
        if self.done:
            trainer.should_stop = True
        else:
            self.stage_index += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage_index": self.stage_index,
            "stage_step": self.stage_step,
            "plateau_exit_step": self.plateau_exit_step,
            "finished_stages": self.finished_stages,
            **self.step_log.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        index, num_finished, num_stages = state_dict["stage_index"], len(state_dict["finished_stages"]), self.num_stages
        if num_finished > num_stages or index != min(num_finished, num_stages - 1) or state_dict["stage_step"] < 0:
            raise ValueError(f"a state at stage {index} of {num_stages} with {num_finished} of them finished")
        self.stage_index = state_dict["stage_index"]
        self.stage_step = state_dict["stage_step"]
        self.plateau_exit_step = state_dict["plateau_exit_step"]
        self.finished_stages = state_dict["finished_stages"]
        self.step_log.load_state_dict(state_dict)


def network(pl_module: L.LightningModule) -> LanguageModel:
    """The language model inside a Lightning module."""
    assert isinstance(pl_module.model, LanguageModel)
    return pl_module.model
