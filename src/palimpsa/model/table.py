"""docs/models.md: what each model config builds, counted on the model itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from hydra import compose, initialize_config_dir

from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.schema import ModelConfig, register_schema
from palimpsa.model.build import build_model

LANGUAGE_MODEL_CONTEXT = 4_096  # tokens, of the published pretraining
SIZES = ("170m", "340m", "760m")

HEAD = """\
# The models, counted

Written by `make figures` from `configs/model`, each model built and counted; a test holds it to the configs.

- **Parameters**: all trained numbers, the tied embedding once; in brackets those outside of the embedding.
- **State**: the recurrent numbers of one sequence in one layer, kept in fp32; times the layers for the whole model.
  Attention's memory grows instead.
- **FLOPs a token**: the forward pass, logits at every token included, a multiply-add counted as two; memories in their
  recurrent form (the chunked kernels do more), attention averaged over the positions of the context that the section
  names; norms, gates and activations left out. A training step takes about three times as much.
"""
COLUMNS = """\
| config | model | layers | width | H, K, V | parameters | state a layer | FLOPs a token |
|---|---|---|---|---|---|---|---|"""


def models_document() -> str:
    """The whole of docs/models.md."""
    register_schema()
    mqar = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
    mqar += sorted(f"ablation/{path.stem}" for path in (CONFIG_DIR / "model/ablation").glob("*.yaml"))
    language = sorted(path.stem for path in (CONFIG_DIR / "model/lm").glob("*.yaml"))
    parts = [HEAD]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        parts += _mqar_sections(mqar)
        for size in SIZES:
            title = f"## Language models of {size.upper()} parameters, context {LANGUAGE_MODEL_CONTEXT:,}"
            names = [f"lm/{name}" for name in language if name.endswith(f"_{size}")]
            parts.append(_section(title, names, [], LANGUAGE_MODEL_CONTEXT))
    return "\n".join(parts)


def _mqar_sections(names: list[str]) -> list[str]:
    """A section for each set of sizes, under the names of all scales that have it."""
    scales_of: dict[str, list[str]] = {}
    for scale in sorted((path.stem for path in (CONFIG_DIR / "scale").glob("*.yaml")), reverse=True):
        # The longest of the curriculum.
        context = max(stage.seq_len for stage in compose("train", [f"scale={scale}"]).task.stages)
        section = _section(f"context {context:,}", names, [f"scale={scale}"], context)
        scales_of.setdefault(section, []).append(f"`scale={scale}`")
    return [f"## MQAR, {' and '.join(scales)}, {section}" for section, scales in scales_of.items()]


def _section(title: str, names: Iterable[str], overrides: list[str], context: int) -> str:
    rows = [_row(name, compose("train", [f"model={name}", *overrides]).model, context) for name in names]
    return "\n".join([title, "", COLUMNS, *rows, ""])


def _row(name: str, config: ModelConfig, context: int) -> str:
    # Shapes without numbers.
    with torch.device("meta"):
        model = build_model(config, None)
    mixer = next(model.mixers())
    outside = model.num_parameters - model.embedding.weight.numel()
    growth = mixer.state_growth
    state = f"{growth:,} a token" if growth else f"{model.state_size:,}"
    cells = [
        f"`{name}`",
        config.label,
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
