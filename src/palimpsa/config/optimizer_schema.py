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
    # Weight decay of A's logarithm and d's bias (of GLA, its decay's bias), which at 0 are windows of two tokens; null:
    # as of all vectors.
    forgetting_decay: float | None = key(None, minimum=0)
    # Of parameters, gradients and both moments. bfloat16 is an exception, to see what it does: small steps round to
    # nothing.
    dtype: str = key("float32", choices=("float32", "bfloat16"))
    warmup_steps: int = key(minimum=0, unit="optimiser steps")
    gradient_clip: float | None = key(above=0)  # global L2 norm; null: gradients are taken as they are
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
    """How models start and are optimised, where that is a matter of recipe; other groups take their values from these.

    `forgetting` and `initial_plasticity` are of language models alone.
    """

    name: str = key("ours", changes_numbers=False)
    dtype: str = key("float32", changes_numbers=False)
    beta2: float = key(0.95, changes_numbers=False)
    eps: float = key(1e-8, changes_numbers=False)
    decay_all: bool = key(False, changes_numbers=False)
    gradient_clip: float | None = key(1.0, changes_numbers=False)
    warmup_steps: int = key(0, changes_numbers=False)
    schedule: str = key("cosine", changes_numbers=False)  # over a fixed training set
    norm: str = key("layernorm", changes_numbers=False)
    final_norm: str | None = key(None, changes_numbers=False)
    conv_init_std: float | None = key(None, changes_numbers=False)
    up_init: str = key("normal", changes_numbers=False)
    num_norm_groups: int | None = key(None, changes_numbers=False)
    projection_bias: bool = key(False, changes_numbers=False)
    conv_bias: bool = key(True, changes_numbers=False)
    forgetting: str = key("normal", changes_numbers=False)
    # The range of the log-uniform draw of softplus(s); null: softplus(1) = 1.31.
    initial_plasticity: list[float] | None = key(None, changes_numbers=False)
