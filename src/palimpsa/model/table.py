"""docs/models.md: what each model config builds, counted on the model itself."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from palimpsa.config.compose import CONFIG_DIR, compose_config
from palimpsa.config.text import markdown_text
from palimpsa.model.build import build_model

LANGUAGE_MODEL_CONTEXT = 4_096  # tokens, of the published pretraining
TINY_CONTEXT = 256  # bytes
# Of language models, from the smallest to the largest: the ends of their names, and what a section calls them.
SIZES = {
    "tiny": ("Language models of about 1M parameters over bytes", TINY_CONTEXT),
    "44m": ("Language models of 44M parameters", LANGUAGE_MODEL_CONTEXT),
    "170m": ("Language models of 170M parameters", LANGUAGE_MODEL_CONTEXT),
    "340m": ("Language models of 340M parameters", LANGUAGE_MODEL_CONTEXT),
    "760m": ("Language models of 760M parameters", LANGUAGE_MODEL_CONTEXT),
}

HEAD = """\
# The models, counted

Written by `make figures` from `configs/model`, each model built and counted; a test holds it to the configs.

- **Parameters**: all trained numbers, the tied embedding once; in brackets those outside of the embedding.
- **State**: the recurrent numbers of one sequence in one layer, kept in fp32; times the layers for the whole model.
  Attention's memory grows instead.
- **FLOPs a token**: the forward pass, logits at every token included, a multiply-add counted as two; memories in their
  recurrent form (the chunked kernels do more), attention averaged over the positions of the context that the section
  names; norms, gates and activations left out. A token of training is counted as three times as many: the backward
  pass has two products for each one of the forward pass. What activation checkpointing computes a second time does not
  count: MFU, from these numbers, is the share of a device's peak that the model itself needed.

## What each plasticity costs

`plasticity` of Palimpsa-D and Palimpsa-M says how many precisions a token has in a head, and `num_precisions` (G) of
`grouped` how many: each serves V / G rows of the memory, whose importances are K G numbers a head. Below, in a layer of
the 170M models: recurrent numbers of one sequence, and parameters of W_up. A constant precision has H V parameters of
its own instead. And the operator's time on an H200 at B 8, T 4,096, H 16, K 48, V 96 in bfloat16: [speed.md](speed.md).

<!-- begin plasticity_costs (written by make figures) -->

<!-- end plasticity_costs -->
"""
COLUMNS = """\
| config | model | layers | width | H, K, V | parameters | state a layer | FLOPs a token |
|---|---|---|---|---|---|---|---|"""


def models_document() -> str:
    """The whole of docs/models.md, but for what stands between markers there."""
    sections = [HEAD, *_sections_by_scale(_configs("*") | _configs("ablation/*"))]
    for size, (title, context) in SIZES.items():
        models = {name: cfg.model for name, cfg in _configs(f"lm/*_{size}").items()}
        sections.append(f"## {title}, context {context:,}{_table(models, context)}")
    return "\n".join(sections)


def _configs(pattern: str) -> dict[str, DictConfig]:
    """configs/train.yaml with each model config that matches, by its name, in alphabetical order."""
    folder = CONFIG_DIR / "model"
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"{pattern}.yaml"))
    return {name: compose_config([f"model={name}"]) for name in names}


def _sections_by_scale(configs: dict[str, DictConfig]) -> list[str]:
    """A section for each set of sizes, under the names of all scales that have it."""
    scales_of: dict[str, list[str]] = {}
    for scale in sorted((path.stem for path in (CONFIG_DIR / "scale").glob("*.yaml")), reverse=True):
        at_scale = compose_config([f"scale={scale}"])
        # The sizes of a model are interpolations of these two.
        for cfg in configs.values():
            cfg.scale, cfg.task = at_scale.scale, at_scale.task
        # Of the longest stage.
        context = max(stage.seq_len for stage in at_scale.task.stages)
        body = f"context {context:,}{_table({name: cfg.model for name, cfg in configs.items()}, context)}"
        scales_of.setdefault(body, []).append(f"`scale={scale}`")
    return [f"## At {' and '.join(scales)}, {body}" for body, scales in scales_of.items()]


def _table(models: dict[str, Any], context: int) -> str:
    return "\n".join(["", "", COLUMNS, *(_row(name, model, context) for name, model in models.items()), ""])


def _row(name: str, config: Any, context: int) -> str:
    # Shapes without numbers.
    with torch.device("meta"):
        model = build_model(config, None)
    mixer = next(model.mixers())
    outside = model.num_parameters - model.embedding.weight.numel()
    growth = mixer.state_growth
    state = f"{growth:,} a token" if growth else f"{model.state_size:,}"
    cells = [
        f"`{name}`",
        markdown_text(config.label),
        str(config.num_layers),
        f"{config.d_model:,}",
        f"{mixer.num_heads}, {mixer.head_k_dim}, {mixer.head_v_dim}",
        f"{_rounded(model.num_parameters)} ({_rounded(outside)})",
        state,
        _rounded(model.flops_per_token(context)),
    ]
    return f"| {' | '.join(cells)} |"


def _rounded(number: int) -> str:
    """Four digits and a unit.

    >>> _rounded(172_345_678), _rounded(36_864), _rounded(1_563_000_000)
    ('172.3M', '36.86k', '1.563G')
    """
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            scaled = number / factor
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))) + 1)}f}{unit}"
    return str(number)
