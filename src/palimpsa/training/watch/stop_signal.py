"""Stops a run of several processes at a signal to any one: all take the same last step, and write its checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

# What a scheduler sends before a time limit, and what it ends a job with.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopAtSignal(Checkpoint):
    """Has all processes write a checkpoint of the same step, and end training, once one of them was sent a signal.

    A checkpoint's callback, which Lightning calls after all others: a step is complete then.

    Args:
        checkpoint_file: where the checkpoint goes.
        is_done: whether the step was the run's last; it then ends as ever.

    Attributes:
        stopped: by which signal and after which step, in words; None where it was not.
    """

    def __init__(self, checkpoint_file: Path, is_done: Callable[[], bool]) -> None:
        self.checkpoint_file = checkpoint_file
        self.is_done = is_done
        self.stopped: str | None = None
        self._received = 0
        self._step = 0
        self._group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        # On the host: a GPU's steps need not end for it.
        self._group = distributed.new_group(backend="gloo")
        for number in SIGNALS:
            # In place of Lightning's own, which speaks to the other processes from within whatever is going on, and
            # writes nothing. Lightning puts back what was there before, when training has ended.
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            # A part of a step.
            return
        self._step = trainer.global_step
        received = torch.tensor(self._received)
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        if not received or self.is_done():
            return
        trainer.save_checkpoint(self.checkpoint_file)
        self.stopped = f"stopped by {signal.Signals(int(received)).name} after step {self._step}, with a checkpoint"
        trainer.should_stop = True

    def interrupt(self) -> None:
        """Ends the process as Ctrl-C does, if it was stopped; after the others, which their launcher would kill.

        Raises:
            KeyboardInterrupt: saying why.
        """
        if self.stopped is not None:
            distributed.barrier(group=self._group)
            raise KeyboardInterrupt(self.stopped)
