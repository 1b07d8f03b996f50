"""What Lightning trains: one step of a task is a batch, its loss, and the optimiser's update."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed

from palimpsa.kernels.validation import OperandError
from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.loss import unit_gradient
from palimpsa.tasks.task import Task
from palimpsa.training.checkpoint import MODEL_CONFIG_KEY
from palimpsa.training.compiled import compiled_code_if
from palimpsa.training.cuda_graph import run_aside
from palimpsa.training.curriculum import Curriculum
from palimpsa.training.distributed import shard_model
from palimpsa.training.gpus import machine_lock
from palimpsa.training.optimizer import clip_gradients, make_optimizer, make_schedule
from palimpsa.training.watch.loss_guard import LossGuard, refused
from palimpsa.training.watch.not_finite import first_layer_not_finite, layer_that_raised


class TrainingModule(L.LightningModule):
    """A language model on a task. Where a run stands is the curriculum's to say; Lightning does the rest of a step.

    Args:
        model: the network.
        task: what it trains on.
        curriculum: says which stage and step comes next.
        optimizer_config: the `optimizer` group.
        schedule: "constant" or "cosine" after a linear warm-up.
        final_lr_share: of the peak learning rate, where a cosine ends.
        accumulate: parts of a process's share of a step, one batch of Lightning's each, whose gradients are added.
        guard: told of every step before it is taken; None: nobody is, and the host does not wait for the loss.
        model_config: what the model was built from, as plain containers; kept in checkpoints, to tell whose they are.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Task[Any, Any],
        curriculum: Curriculum,
        optimizer_config: Any,
        schedule: str,
        model_config: dict[str, Any],
        *,
        final_lr_share: float = 0.0,
        accumulate: int = 1,
        guard: LossGuard | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.curriculum = curriculum
        self.optimizer_config = optimizer_config
        self.schedule = schedule
        self.final_lr_share = final_lr_share
        self.accumulate = accumulate
        self.guard = guard
        self._step_loss: Tensor | float = 0.0
        self.model_config = model_config
        self._is_whole_batch = True

    def training_step(self, _: Any, batch_idx: int) -> Tensor:
        costs = self.curriculum.step_log.costs
        with costs.waiting_for_data() if costs is not None else contextlib.nullcontext():
            batch = self._batch(batch_idx % self.accumulate)
        num_shares = self.trainer.world_size * self.accumulate
        self._is_whole_batch = self.task.count_examples(batch) * num_shares == self.curriculum.stage.batch_size
        try:
            with compiled_code_if(self._is_whole_batch):
                # Lightning divides it by the parts of a share, and adds their gradients.
                loss = self.task.loss(self.model, batch).mean
        except OperandError as error:
            if self.guard is None:
                raise
            # On a CPU the operator looks at its arguments before anyone looks at the loss.
            # Of several processes the others are on their way to the next layer, and would not go through it again.
            found = self._find_own_layer() if self.trainer.world_size == 1 else None
            where = found or layer_that_raised(self.model, error)
            raise refused(f"palimpsa: {error}", self.trainer.global_step, where, self._describe_batch()) from error
        if self.guard is not None:
            self._step_loss = self._step_loss + loss.detach() / self.accumulate
        return loss

    def _batch(self, part: int) -> tuple[Tensor, ...]:
        """One part of this process's share of the step that comes next."""
        share = self.global_rank * self.accumulate + part
        num_shares = self.trainer.world_size * self.accumulate
        stage, step = self.curriculum.stage, self.curriculum.stage_step
        return self.task.batch(stage, step, self.device, rank=share, num_ranks=num_shares)

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        # What blocks do not keep is computed again here, by the same code.
        with compiled_code_if(self._is_whole_batch):
            super().backward(loss, *arguments, **options)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        look = None if self.guard is None else self._look
        norm = clip_gradients(optimizer, self.optimizer_config.gradient_clip, look)
        if self.curriculum.step_log.costs is not None:
            self.curriculum.step_log.costs.gradient_norm = norm

    def _look(self, norm: Tensor) -> None:
        """Has the guard look at the step, whose gradients have this norm."""
        assert self.guard is not None
        loss = float(self.trainer.strategy.reduce(torch.as_tensor(self._step_loss), reduce_op="mean"))
        self._step_loss = 0.0
        step = self.trainer.global_step
        self.guard.check(step, loss, float(norm), self.model, self._describe_batch, self._find_layer)

    def _find_layer(self) -> str | None:
        """Where the forward pass of the step has its first number that is none, in words; asked of all processes."""
        own = self._find_own_layer()
        found = [own] * self.trainer.world_size
        if self.trainer.world_size > 1:
            # A share of another process may be the one.
            distributed.all_gather_object(found, own)
        return next(filter(None, found), None)

    def _find_own_layer(self) -> str | None:
        def forward() -> None:
            with self.trainer.precision_plugin.forward_context(), contextlib.suppress(OperandError):
                for part in range(self.accumulate):
                    self.task.loss(self.model, self._batch(part))

        return first_layer_not_finite(self.model, forward)

    def _describe_batch(self) -> str:
        return self.task.describe_batch(self.curriculum.stage, self.curriculum.stage_step)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard_model(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        optimizer = make_optimizer(self.model, config, self.device)
        scheduler = make_schedule(
            optimizer,
            schedule=self.schedule,
            warmup_steps=config.warmup_steps,
            max_steps=self.task.max_steps,
            final_share=self.final_lr_share,
            new_warmup_steps=config.new_warmup_steps,
            steps_per_epoch=self.task.steps_per_epoch,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        if self.device.type == "cuda" and self.trainer.world_size == 1 and not self.curriculum.done:
            # Libraries choose their kernels by timing what they are called with first: this, not the probe's few
            # contexts. What one process has chosen the next finds on disk; two at a time might round differently.
            report = self.curriculum.report
            with machine_lock("tuning", lambda: report(0, "waits for another run, which chooses its kernels")):
                report(0, "compiles and chooses its kernels, minutes on a machine that has not done so before")
                self._warm_up()

    def _warm_up(self) -> None:
        batch = self.task.batch(self.curriculum.stage, 0, self.device, num_ranks=self.accumulate)
        with self.trainer.precision_plugin.forward_context():
            run_aside(lambda: self.compute_gradients(batch))
        self.zero_grad()

    def compute_gradients(self, batch: tuple[Tensor, ...]) -> Tensor:
        """What Lightning does in a step up to the optimiser's update, under the step's autocast; returns the loss."""
        self.zero_grad()
        loss = self.task.loss(self.model, batch).mean
        # Lightning has left autocast by now: what the forward kept in fp32 goes back in fp32.
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward(unit_gradient(loss.device))
            clip_gradients(self.optimizers(use_pl_optimizer=False), self.optimizer_config.gradient_clip)
        return loss.detach()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[MODEL_CONFIG_KEY] = self.model_config

    def release(self) -> None:
        """Lets go of what only training needs: gigabytes that a sweep's next run in this process may want."""
        self.zero_grad()
        self.task.release()
