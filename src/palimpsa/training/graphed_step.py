"""A training step replayed as one CUDA graph: a wrapper around the step that Lightning runs, to the same bits.

For one GPU, and a task whose batches and loss compute there alone (`Task.capturable`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsa.tasks.task import Stage, Task
from palimpsa.training.compiled import compiled_code_if
from palimpsa.training.cuda_graph import Replay, run_aside
from palimpsa.training.module import TrainingModule


class GraphedTrainingModule(TrainingModule):
    """`TrainingModule` whose forward, backward and clipping are captured anew in every stage, and replayed.

    Each batch is made while the step before it computes. The first two steps of a stage, and batches of another size,
    are launched kernel by kernel.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert self.task.capturable
        self._stage: Stage | None = None
        self._batches: PrefetchedBatches | None = None
        # What the graph reads its batch from.
        self._batch: tuple[Tensor, ...] | None = None
        self._replay: Replay[tuple[Tensor, list[Tensor | None]]] | None = None

    def training_step(self, _: Any, batch_idx: int) -> Tensor:
        stage, step = self.curriculum.stage, self.curriculum.stage_step
        if stage is not self._stage or self._batches is None or self._replay is None:
            # The old graph's memory is free before the new one takes its own.
            self._release_graph()
            self._stage, self._batches = stage, PrefetchedBatches(self.task, stage, self.device)
            self._replay = Replay(lambda: self._loss_and_gradients(self._batch))
        batch = self._batches.take(step)
        if len(batch[0]) < stage.batch_size:
            with compiled_code_if(False):
                return run_aside(lambda: self.compute_gradients(batch))
        if self._batch is None:
            # Of the same class, whose fields the task may name.
            self._batch = type(batch)(*(x.clone() for x in batch))
        else:
            for kept, new in zip(self._batch, batch, strict=True):
                kept.copy_(new)
        self._batches.start(step + 1)
        loss, gradients = self._replay()
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return loss

    # What a step's graph has done already.
    def optimizer_zero_grad(self, *_: Any) -> None:
        pass

    def backward(self, *_: Any) -> None:
        pass

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        pass

    def release(self) -> None:
        self._release_graph()
        super().release()

    def _release_graph(self) -> None:
        if self._batches is not None:
            self._batches.join()
        self._stage = self._batches = self._batch = self._replay = None
        self.zero_grad()

    def _loss_and_gradients(self, batch: tuple[Tensor, ...] | None) -> tuple[Tensor, list[Tensor | None]]:
        assert batch is not None
        return self.compute_gradients(batch), [parameter.grad for parameter in self.model.parameters()]


class PrefetchedBatches:
    """The training batches of a stage, made on a stream of their own.

    Their sorting leaves most of a GPU idle: beside a step's kernels it takes no time.
    """

    def __init__(self, task: Task[Any, Any], stage: Stage, device: torch.device) -> None:
        self.task = task
        self.stage = stage
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._examples = torch.zeros(stage.batch_size, dtype=torch.int64, device=device)
        self._replay = Replay(lambda: task.make_batch(stage, "train", self._examples))
        self._step: int | None = None
        self._batch: tuple[Tensor, ...] | None = None

    def start(self, step: int) -> None:
        """Makes the batch of a step, once what the current stream has been given so far is done."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            examples = self.task.train_examples(self.stage, step, self.device)
            if len(examples) == self.stage.batch_size:
                self._examples.copy_(examples)
                self._batch = self._replay()
            else:
                self._batch = self.task.make_batch(self.stage, "train", examples)
        self._step = step

    def join(self) -> None:
        """The current stream waits for what was started, which then writes to memory that others may take no more."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def take(self, step: int) -> tuple[Tensor, ...]:
        """The batch of a step, for the current stream, until the next `start`."""
        if step != self._step or self._batch is None:
            self.start(step)
        torch.cuda.current_stream().wait_stream(self._stream)
        assert self._batch is not None
        return self._batch
