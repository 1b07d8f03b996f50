"""The part of the schema that says how weights start and are optimised: `optimizer`, `start`, `recipe`."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsa.config.keys import key


@dataclass
class OptimizerConfig:
    """AdamW."""

    name: str = key("adamw", choices=("adamw",))
    lr: float = key(above=0, swept=True)  # peak learning rate
    weight_decay: float = key(minimum=0)
    beta1: float = key(minimum=0, below=1)
    beta2: float = key(minimum=0, below=1)
    eps: float = key(1e-8, above=0)
    decay_all: bool = key(False)  # False: matrices, taps and embeddings alone
    warmup_steps: int = key(minimum=0, unit="optimiser steps")
    gradient_clip: float = key(above=0)  # global L2 norm
    # Of the parameters that metaplasticity adds to a model: peak learning rate, eps and warm-up; null: as of all.
    new_lr: float | None = key(None, above=0)
    new_eps: float | None = key(None, above=0)
    new_warmup_steps: int | None = key(None, minimum=0, unit="optimiser steps")
    # Parameters that stay as they are: "old", all but those, or patterns of names, "blocks.*.mixer.*_proj.weight".
    freeze: list[str] | None = key(None)


@dataclass
class StartConfig:
    """The weights that a run starts from. docs/finetuning.md says what fits."""

    # A run's directory, a checkpoint, or a folder of scripts/convert.py; null: the run's seed draws them.
    weights: str | None = key(None, changes_numbers=False)
    # 64 hexadecimal digits of what is in it; null: read from there before the run.
    digest: str | None = key(None)


@dataclass
class RecipeConfig:
    """How language models start and are optimised, where that is a matter of recipe; other groups take their values
    from these.
    """

    name: str = key("ours", changes_numbers=False)
    eps: float = key(1e-8, changes_numbers=False)
    decay_all: bool = key(False, changes_numbers=False)
    forgetting: str = key("normal", changes_numbers=False)
    # The range of the log-uniform draw of softplus(s); null: softplus(1) = 1.31.
    initial_plasticity: list[float] | None = key(None, changes_numbers=False)
