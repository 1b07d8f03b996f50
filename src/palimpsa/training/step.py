"""The gradients of one training step: run as it stands, or on a GPU compiled and replayed as one CUDA graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.mqar import MQARBatch, mqar_examples
from palimpsa.tasks.recall import query_loss
from palimpsa.tasks.stages import Stage
from palimpsa.training.cuda_graph import Replay, run_aside

# A version of a block for every model, length, and with or without gradients; beyond this dynamo gives up.
MAX_VERSIONS = 512


def compile_blocks(model: LanguageModel) -> None:
    """Compiles the model's blocks and its last norm with torch.compile: fewer passes over memory, other rounding.

    One block at a time: layers share what is compiled, and the embedding stays out, whose compiled gradient adds in an
    order that differs between runs.
    """
    from torch._inductor import config as inductor

    torch._dynamo.config.recompile_limit = MAX_VERSIONS
    # Reductions that are chosen by timing them add in an order that may differ between two runs.
    inductor.deterministic = True
    # Otherwise it would go on uncompiled, and say nothing.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in model.blocks:
        block.compile(dynamic=False)
    # A module of PyTorch's own would not be compiled: its code is on dynamo's list of what to leave alone.
    model.normalise = torch.compile(model.normalise, dynamic=False)


class GradientStep:
    """Computes the clipped gradients of a step's loss, into `parameter.grad`, and returns the loss.

    Args:
        model: the network.
        parameters: those of the optimiser, in its order.
        seed: of the run's training data.
        gradient_clip: global L2 norm.
        use_graphs: replay forward, backward and clipping as a CUDA graph, captured anew in every stage, and make each
            batch while the step before it computes. The first two steps of a stage, and batches of another size, are
            launched kernel by kernel.
    """

    def __init__(
        self,
        model: LanguageModel,
        parameters: list[nn.Parameter],
        *,
        seed: int,
        gradient_clip: float,
        use_graphs: bool,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.seed = seed
        self.gradient_clip = gradient_clip
        self.use_graphs = use_graphs
        self._stage: Stage | None = None
        self._batches: _Batches | None = None
        self._batch: MQARBatch | None = None
        self._replay: Replay[tuple[Tensor, list[Tensor | None]]] | None = None

    def __call__(self, stage: Stage, step: int, device: torch.device) -> Tensor:
        """The loss, a scalar on the device, of `step` (0-based) of a stage; the next call may overwrite it."""
        if not self.use_graphs:
            batch = _make_batch(stage, self.seed, stage.train_examples(self.seed, step, device))
            with _compiled_for(stage, batch):
                return self._compute(batch)[0]
        if stage != self._stage or self._batches is None or self._replay is None:
            # The old graph's memory is free before the new one takes its own.
            self.release()
            self._stage, self._batches = stage, _Batches(stage, self.seed, device)
            self._replay = Replay(lambda: self._compute(self._batch))
        batch = self._batches.take(step)
        if len(batch.inputs) != stage.batch_size:
            with _compiled_for(stage, batch):
                return run_aside(lambda: self._compute(batch))[0]
        if self._batch is None:
            self._batch = MQARBatch(*(x.clone() for x in batch))
        else:
            for kept, new in zip(self._batch, batch, strict=True):
                kept.copy_(new)
        self._batches.start(step + 1)
        loss, gradients = self._replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def warm_up(self, stage: Stage, device: torch.device) -> None:
        """Computes gradients on the GPU once, and forgets them."""
        batch = _make_batch(stage, self.seed, stage.train_examples(self.seed, 0, device))
        run_aside(lambda: self._compute(batch))
        self._forget_gradients()

    def release(self) -> None:
        """Lets go of what was captured: gigabytes that a sweep's next run in this process may want."""
        if self._batches is not None:
            self._batches.join()
        self._stage = self._batches = self._batch = self._replay = None
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _compute(self, batch: MQARBatch | None) -> tuple[Tensor, list[Tensor | None]]:
        assert batch is not None
        self._forget_gradients()
        logits = self.model(batch.inputs, batch.query_positions)
        # What the forward kept in fp32 goes back in fp32.
        with torch.autocast(logits.device.type, enabled=False):
            loss, _, gradient = query_loss(logits, batch.labels, with_gradient=True)
            logits.backward(gradient)
            nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        return loss, [parameter.grad for parameter in self.parameters]


def _compiled_for(stage: Stage, batch: MQARBatch) -> AbstractContextManager[Any]:
    """Compiled code for a batch of the stage's size only: an epoch's last, smaller one is not worth compiling for."""
    return nullcontext() if len(batch.inputs) == stage.batch_size else torch.compiler.set_stance("force_eager")


def _make_batch(stage: Stage, seed: int, examples: Tensor) -> MQARBatch:
    return mqar_examples(stage.spec, seed=seed, split="train", stage=stage.index, examples=examples)


class _Batches:
    """The training batches of a stage, made on a stream of their own.

    Their sorting leaves most of a GPU idle: beside a step's kernels it takes no time.
    """

    def __init__(self, stage: Stage, seed: int, device: torch.device) -> None:
        self.stage = stage
        self.seed = seed
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._examples = torch.zeros(stage.batch_size, dtype=torch.int64, device=device)
        self._replay = Replay(lambda: _make_batch(stage, seed, self._examples))
        self._step: int | None = None
        self._batch: MQARBatch | None = None

    def start(self, step: int) -> None:
        """Makes the batch of a step, once what the current stream has been given so far is done."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            examples = self.stage.train_examples(self.seed, step, self.device)
            if len(examples) == self.stage.batch_size:
                self._examples.copy_(examples)
                self._batch = self._replay()
            else:
                self._batch = _make_batch(self.stage, self.seed, examples)
        self._step = step

    def join(self) -> None:
        """The current stream waits for what was started, which then writes to memory that others may take no more."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def take(self, step: int) -> MQARBatch:
        """The batch of a step, for the current stream, until the next `start`."""
        if step != self._step or self._batch is None:
            self.start(step)
        torch.cuda.current_stream().wait_stream(self._stream)
        assert self._batch is not None
        return self._batch
