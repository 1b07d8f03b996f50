"""Mamba-2 as transformers and state-spaces' mamba_ssm keep it, by the names and the config that it has here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import is_file_name
from palimpsa.conversion.mamba2_options import Mamba2Options
from palimpsa.conversion.weight_files import check_one_floating_dtype, read_weights
from palimpsa.mixers.parameters import MASTER_DTYPE
from palimpsa.model.build import build_skeleton, check_model

EMBEDDINGS = ("backbone.embeddings.weight", "backbone.embedding.weight")
HEAD = "lm_head.weight"
# Of a block, by our names.
NAMES_OF_A_BLOCK = {
    "mixer_norm.weight": "norm.weight",
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.in_proj.bias": "mixer.in_proj.bias",
    "mixer.conv.weight": "mixer.conv1d.weight",
    "mixer.conv.bias": "mixer.conv1d.bias",
    "mixer.decay.log_rate": "mixer.A_log",
    "mixer.decay.bias": "mixer.dt_bias",
    "mixer.skip": "mixer.D",
    "mixer.o_norm.weight": "mixer.norm.weight",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
    "mixer.out_proj.bias": "mixer.out_proj.bias",
}


@dataclass(frozen=True)
class Mamba2:
    """A Mamba-2 by our names: see `Source`."""

    model_config: dict[str, Any]
    weights: dict[str, Tensor]
    origins: dict[str, str]
    dropped: dict[str, str]
    notes: list[str]


def read_mamba2(folder: Path, options: Mamba2Options, num_norm_groups: int | None = None) -> Mamba2:
    """The model of a folder, whose config.json has been read.

    Args:
        num_norm_groups: of the output norm; None: one a group of keys, as mamba_ssm and transformers 5.23 have it. 1 is
            the whole width, as transformers 5.17 computed models of several groups.

    Raises:
        ConfigError: in one line: tensors are missing, left over, of other shapes or several dtypes, or cannot be read.
    """
    model_config = _model_config(folder.resolve().name, options, num_norm_groups)
    try:
        # Of one layer: how many there are the weights say too.
        check_model({**model_config, "num_layers": min(options.num_layers, 1)})
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    found, how = read_weights(folder)
    num_layers = len({name.split(".")[2] for name in found if name.startswith("backbone.layers.")})
    if options.num_layers > num_layers:
        raise ConfigError(
            f"{folder}: got weights of {num_layers} layers, expected {options.num_layers}, as its config.json says"
        )
    check_one_floating_dtype(found, folder)
    weights, origins, dropped = _by_our_names(folder, options, model_config, found)
    norm = model_config["mixer"]["num_norm_groups"]
    stored = next(iter(found.values())).dtype
    notes = [how, *([] if stored == MASTER_DTYPE else [f"weights: {stored} there, {MASTER_DTYPE} here"])]
    if options.num_groups > 1 or norm > 1:
        notes.append(
            f"output norm: over each of {norm} groups, config.json says {options.num_groups} groups of keys; "
            "--norm-groups 1 is the whole width, as transformers 5.17 computed it"
        )
    return Mamba2(model_config, weights, origins, dropped, notes)


def _model_config(name: str, options: Mamba2Options, num_norm_groups: int | None) -> dict[str, Any]:
    is_limited = options.time_step_limit != (0.0, math.inf)
    width = options.num_heads * options.head_width
    if num_norm_groups is not None and (num_norm_groups < 1 or width % num_norm_groups):
        raise ConfigError(f"--norm-groups: got {num_norm_groups}, expected a divisor of the inner width {width}")
    return {
        # Runs of it lie in a directory of the name.
        "name": name if is_file_name(name) else "mamba2",
        "label": "Mamba-2",
        "vocab_size": options.vocab_size,
        "d_model": options.d_model,
        "num_layers": options.num_layers,
        "norm": "rmsnorm",
        "norm_eps": options.eps,
        "channel_mixer": "none",
        "channel_width": None,
        "init_std": None,
        "tie_word_embeddings": options.is_tied,
        "mixer": {
            "_target_": "palimpsa.mixers.PalimpsaM",
            "num_heads": options.num_heads,
            "head_k_dim": options.state_size,
            "head_v_dim": options.head_width,
            "conv_width": options.conv_width,
            "conv_bias": options.conv_bias,
            "projection_bias": options.projection_bias,
            "num_groups": options.num_groups,
            "num_norm_groups": options.num_groups if num_norm_groups is None else num_norm_groups,
            "norm_eps": options.eps,
            "step_size_limit": list(options.time_step_limit) if is_limited else None,
            "metaplastic": False,
        },
    }


def _by_our_names(
    folder: Path, options: Mamba2Options, model_config: dict[str, Any], found: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The weights by our names, theirs by ours, and what is left out; ConfigError for a wrong one."""
    with torch.device("meta"):
        own = build_skeleton(model_config).state_dict()
    embedding = next((name for name in EMBEDDINGS if name in found), EMBEDDINGS[0])
    origins = {"embedding.weight": embedding, "norm.weight": "backbone.norm_f.weight"}
    if not options.is_tied:
        origins["head.weight"] = HEAD
    for layer in range(options.num_layers):
        origins |= {
            f"blocks.{layer}.{ours}": f"backbone.layers.{layer}.{theirs}" for ours, theirs in NAMES_OF_A_BLOCK.items()
        }
    # Biases that this model does not have, and the importance, which no Mamba-2 has.
    origins = {ours: theirs for ours, theirs in origins.items() if ours in own}
    missing = [theirs for theirs in origins.values() if theirs not in found]
    if missing:
        raise ConfigError(
            f"{folder}: got no {missing[0]} among its weights, and {len(missing) - 1} more missing, expected all that "
            "its config.json says"
        )
    extra = sorted(found.keys() - set(origins.values()) - ({HEAD} if options.is_tied else set()))
    if extra:
        raise ConfigError(
            f"{folder}: got {extra[0]} among its weights, and {len(extra) - 1} more, which its config.json does "
            "not have"
        )
    dropped = {}
    if options.is_tied and HEAD in found:
        if not torch.equal(found[HEAD], found[embedding]):
            raise ConfigError(f"{folder}: got {HEAD} other than {embedding}, to which its config.json ties it")
        dropped[HEAD] = f"{embedding} itself"
    weights = {}
    for ours, theirs in origins.items():
        shape = list(own[ours].shape)
        expected = [shape[0], 1, shape[1]] if ours.endswith("conv.weight") else shape
        if list(found[theirs].shape) != expected:
            raise ConfigError(
                f"{folder}: {theirs}: got shape {list(found[theirs].shape)}, expected {expected} by its config.json"
            )
        weights[ours] = found[theirs].view(shape).to(MASTER_DTYPE)
    return weights, origins, dropped
