"""AdamW: which parameters are trained, decay, and have a rate of their own; the rate at each step, and clipping."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from palimpsa.config.errors import ConfigError
from palimpsa.mixers.gla import GLA, SimpleGLA
from palimpsa.mixers.layers import Decay
from palimpsa.mixers.parameters import MASTER_DTYPE
from palimpsa.mixers.plasticity import ConstantPlasticity, Plasticity

# Of `optimizer.freeze`: all parameters but the new ones.
OLD = "old"
# Of `optimizer`: what is of the new parameters alone.
NEW_KEYS = ("new_lr", "new_eps", "new_warmup_steps")
# Of AdamW's groups: those of new parameters with a rate of their own.
NEW = "new"


def new_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What metaplasticity adds to a model, by name: the parameters of its plasticities, which conversion makes."""
    plasticities = [one for one in model.modules() if isinstance(one, Plasticity | ConstantPlasticity)]
    ids = {id(parameter) for one in plasticities for parameter in one.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ids}


def freeze(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Has parameters get no gradients, and so no moments and no decay; returns their names.

    Args:
        model: before it is spread over processes.
        names: "old", all but the new ones, or patterns of names as fnmatch has them.

    Raises:
        ConfigError: naming a pattern that no parameter has, or where nothing is left to train.
    """
    parameters, new = dict(model.named_parameters()), new_parameters(model)
    frozen: set[str] = set()
    for pattern in names:
        chosen = parameters.keys() - new.keys() if pattern == OLD else set(fnmatch.filter(parameters, pattern))
        if not chosen:
            raise ConfigError(
                f"optimizer.freeze: got {pattern!r}, which no parameter has, expected {OLD!r} or a pattern of names "
                f"like {next(iter(parameters))}"
            )
        frozen |= chosen
    if frozen == parameters.keys():
        raise ConfigError(
            f"optimizer.freeze: got {', '.join(names)}, which is all {len(parameters)} parameters, expected some that "
            "are trained"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return sorted(frozen)


def check_new_rates(model: nn.Module, config: Any) -> None:
    """Raises ConfigError for a rate or a warm-up of the new parameters where the model has none."""
    for name in NEW_KEYS:
        value = getattr(config, name)
        if value is not None and not new_parameters(model):
            raise ConfigError(
                f"optimizer.{name}: got {value} with a model without metaplasticity, expected null: it has no new "
                "parameters"
            )


def make_optimizer(model: nn.Module, config: Any, device: torch.device) -> AdamW:
    """AdamW with the peak rate and betas of the `optimizer` group.

    Raises:
        ValueError: see `weight_decay_groups`.
    """
    return AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        # The other one launches a dozen kernels a tensor, or copies lists of them to the GPU. In bf16 it is the one to
        # take: it rounds after every operation, as the AdamW does whose effect is looked for.
        fused=device.type == "cuda" and stored_dtype(config) == MASTER_DTYPE,
    )


def parameter_groups(model: nn.Module, config: Any) -> list[dict[str, Any]]:
    """AdamW's groups: those of `weight_decay_groups`, and where the new parameters have a rate, eps or warm-up of
    their own, the same of these, with their peak rate and `NEW`. Without those that are empty then, of what is frozen.

    Raises:
        ValueError: see `weight_decay_groups`.
    """
    decay = partial(
        weight_decay_groups,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
        forgetting_decay=config.forgetting_decay,
        dtype=stored_dtype(config),
    )
    if all(getattr(config, name) is None for name in NEW_KEYS):
        return decay(model)
    ids = {id(parameter) for parameter in new_parameters(model).values()}
    groups = []
    for group in decay(model):
        own = {True: [], False: []}
        for parameter in group["params"]:
            own[id(parameter) in ids].append(parameter)
        groups.append({**group, "params": own[False]})
        rate = config.lr if config.new_lr is None else config.new_lr
        eps = config.eps if config.new_eps is None else config.new_eps
        groups.append({**group, "params": own[True], "lr": rate, "eps": eps, NEW: True})
    # Old ones first: theirs is the rate that curves call by that name.
    return sorted((group for group in groups if group["params"]), key=lambda group: NEW in group)


def learning_rates(optimizer: Any) -> dict[str, float]:
    """What curves say of the rates: `learning_rate`, and `learning_rate_new` where new parameters have their own."""
    groups = optimizer.param_groups
    named = {("learning_rate_new" if group.get(NEW) else "learning_rate"): group["lr"] for group in groups}
    # Of a run that trains the new ones alone it is the only one.
    return {"learning_rate": groups[0]["lr"], **named}


def make_schedule(
    optimizer: AdamW,
    *,
    schedule: str,
    warmup_steps: int,
    max_steps: int,
    final_share: float,
    new_warmup_steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> LambdaLR:
    """The learning rate of every step: see `learning_rate_factor`; new_warmup_steps: of the groups that are `NEW`."""
    # What changes with the epoch stays, all through one, what it was at its first step.
    length = (steps_per_epoch or 1) if schedule == "cosine_by_epoch" else 1
    steps = [
        new_warmup_steps if group.get(NEW) and new_warmup_steps is not None else warmup_steps
        for group in optimizer.param_groups
    ]
    return LambdaLR(
        optimizer,
        [
            partial(
                learning_rate_factor,
                schedule=schedule,
                warmup_steps=own_steps,
                max_steps=max_steps,
                final_share=final_share,
                length=length,
            )
            for own_steps in steps
        ],
    )


def learning_rate_factor(
    step: int, *, schedule: str, warmup_steps: int, max_steps: int, final_share: float = 0.0, length: int = 1
) -> float:
    """The share of the peak learning rate at a step: a linear warm-up, then "constant", or a cosine to `final_share`
    that takes a step down every `length` steps, where an epoch begins.

    >>> learning_rate_factor(0, schedule="cosine", warmup_steps=2, max_steps=6)
    0.5
    >>> round(learning_rate_factor(6, schedule="cosine", warmup_steps=2, max_steps=6, final_share=0.1), 3)
    0.1
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    first = max(step - step % length, warmup_steps)
    progress = min(1.0, (first - warmup_steps) / max(1, max_steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def forgetting_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A's logarithm and d's bias of every head, by name, or the bias of GLA's decay: what `Decay` and its like keep."""
    own = [p for one in model.modules() if isinstance(one, Decay) for p in one.parameters()]
    own += [one.decay_bias for one in model.modules() if isinstance(one, GLA | SimpleGLA)]
    ids = set(map(id, own))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ids}


def check_forgetting_decay(model: nn.Module, config: Any) -> None:
    """Raises ConfigError for a weight decay of what the model does not have."""
    if config.forgetting_decay is not None and not forgetting_parameters(model):
        raise ConfigError(
            f"optimizer.forgetting_decay: got {config.forgetting_decay} with a model that never forgets, expected null"
        )


def stored_dtype(config: Any) -> torch.dtype:
    """What parameters, gradients and moments are kept in, by the `optimizer` group."""
    return getattr(torch, config.dtype)


def weight_decay_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_all: bool = False,
    forgetting_decay: float | None = None,
    dtype: torch.dtype = MASTER_DTYPE,
) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices, taps and embeddings decay; vectors do not (A, d's bias, D, s, norms, biases).

    Args:
        decay_all: they do too.
        forgetting_decay: of `forgetting_parameters`, a group of its own; None: as of the other vectors.
        dtype: that a run keeps its parameters in.

    Raises:
        ValueError: for a trained parameter of another dtype: bf16 keeps 8 bits, and AdamW's steps on it round to
            nothing, which a run has to ask for.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if parameter.dtype != dtype:
            raise ValueError(
                f"{name}: got a trained parameter of {parameter.dtype}, expected {dtype} master weights; "
                "lower precision is autocast's business (trainer.precision=bf16-mixed)"
            )
    apart = {} if forgetting_decay is None else forgetting_parameters(model)
    vectors = [p for name, p in trained.items() if p.ndim < 2 and name not in apart]
    groups = [
        {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": weight_decay if decay_all else 0.0},
    ]
    own = [p for name, p in trained.items() if name in apart]
    return [*groups, *([{"params": own, "weight_decay": forgetting_decay}] if own else [])]


def clip_gradients(optimizer: Any, max_norm: float | None, look: Callable[[Tensor], None] | None = None) -> Tensor:
    """Scales a torch optimiser's gradients in place so that their global L2 norm is at most `max_norm`.

    Args:
        max_norm: None leaves them as they are.
        look: called with their norm before: one that is no number would scale all of them to what is none.

    Returns:
        what their norm was.
    """
    # Lightning's own refuses a fused optimiser, which only in fp16 would see scaled gradients.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # Of sharded gradients, that of all parts.
    whole = getattr(norm, "full_tensor", lambda: norm)()
    if look is not None:
        look(whole)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return whole
