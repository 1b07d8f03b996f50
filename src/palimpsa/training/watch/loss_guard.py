"""Stops a run before a step that its loss or gradients say would spoil it, and says which step, batch and layer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning as L
from torch import nn

from palimpsa.training.watch.not_finite import gradient_not_finite, largest_gradient

# Steps whose losses are remembered; as many have to be there before one is called a spike.
WINDOW = 100


class LossGuard(L.Callback):
    """Remembers the losses of the last `WINDOW` steps, and refuses the step whose loss or gradient does not belong.

    A callback for the sake of its state, which travels in checkpoints; the training module asks it.

    Args:
        spike_sigmas: a loss above their mean by so many of their standard deviations is a spike.
    """

    def __init__(self, spike_sigmas: float) -> None:
        self.spike_sigmas = spike_sigmas
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(
        self,
        step: int,
        loss: float,
        gradient_norm: float,
        model: nn.Module,
        describe_batch: Callable[[], str],
        find_layer: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Looks at a step before the optimiser takes it, and remembers its loss.

        Args:
            step: 0-based, of the whole run.
            loss: nats, of all processes, so that all of them decide alike.
            gradient_norm: L2, of all parameters.
            model: whose parameters hold the gradients, before clipping: with a norm that is no number none of them is.
            describe_batch: says, in words, what the step was taken on.
            find_layer: says, in words, where the forward pass has its first number that is none; None: nowhere.

        Raises:
            FloatingPointError: for a loss or a norm that is no number, and a spike; the parameters are as they were.
        """
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {gradient_norm}"
            where = find_layer() or gradient_not_finite(model) or f"all gradients are finite, {largest_gradient(model)}"
            raise refused(what, step, where, describe_batch())
        if len(self._losses) == WINDOW:
            mean = math.fsum(self._losses) / WINDOW
            deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in self._losses) / WINDOW)
            if loss > mean + self.spike_sigmas * deviation:
                raise FloatingPointError(
                    f"the loss is {loss:.4g} at step {step}, above the last {WINDOW} steps' mean of {mean:.4g} by more "
                    f"than trainer.spike_sigmas = {self.spike_sigmas:g} standard deviations of {deviation:.3g}; "
                    f"{largest_gradient(model)}: the step is not taken, the last checkpoint is from before it. A lower "
                    f"optimizer.lr may help, and trainer.spike_sigmas=null goes on. Its batch: {describe_batch()}"
                )
        self._losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        losses = state_dict["losses"]
        if len(losses) > WINDOW or not all(isinstance(one, float) and math.isfinite(one) for one in losses):
            raise ValueError(f"losses: expected at most {WINDOW} finite numbers")
        self._losses = deque(losses, maxlen=WINDOW)


def refused(what: str, step: int, where: str, batch: str) -> FloatingPointError:
    """What is raised for numbers that are none, before the step is taken.

    Args:
        what, where, batch: in words: what is no number, in which layer, and what the step was taken on.
        step: 0-based, of the whole run.
    """
    return FloatingPointError(
        f"{what} at step {step}, {where}: the step is not taken; the last checkpoint is from before it, and a lower "
        f"optimizer.lr may help. Its batch: {batch}"
    )
