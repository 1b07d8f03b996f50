"""What a Mamba-2's config says, in the words of transformers or of state-spaces' mamba_ssm; what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.runs.result import read_json_object

# Of state-spaces' models, in its code and in no config.
STATE_SPACES_EPS = 1e-5
# What a config of transformers' may say that changes the function and has no place here: the only value that will do.
ONLY_OF_TRANSFORMERS = {
    "rms_norm": True,
    "norm_before_gate": False,
    "rmsnorm": True,
    "D_has_hdim": False,
    "d_ssm": None,
    "d_intermediate": 0,
    "attn_layer_idx": [],
    "quantization_config": None,
}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# mamba_ssm's MambaConfig: its defaults. What stands in `ONLY_OF_STATE_SPACES` has no other value here.
STATE_SPACES_DEFAULTS = {
    **{"d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}, "pad_vocab_size_multiple": 8},
    **{"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "tie_embeddings": True},
    **{"residual_in_fp32": True, "fused_add_norm": True},
}
ONLY_OF_STATE_SPACES = {"d_intermediate": 0, "attn_layer_idx": [], "rms_norm": True}
# The arguments of its class Mamba2, by `ssm_cfg`.
SSM_DEFAULTS = {
    **{"layer": "Mamba1", "d_state": 128, "d_conv": 4, "expand": 2, "headdim": 64, "d_ssm": None, "ngroups": 1},
    **{"D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False, "dt_limit": [0.0, math.inf]},
    **{"bias": False, "conv_bias": True},
    # How it starts, or how it computes.
    **{"conv_init": None, "A_init_range": [1, 16], "dt_min": 0.001, "dt_max": 0.1, "dt_init_floor": 1e-4},
    **{"chunk_size": 256, "use_mem_eff_path": True, "process_group": None, "sequence_parallel": True},
}
ONLY_OF_SSM = {"layer": "Mamba2", "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What both groups of keys may be, and how that is said.
STATE_SPACES_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("d_model", "n_layer", "vocab_size", "d_state", "d_conv", "headdim", "ngroups"),
        (_is_count, "a whole number above 0"),
    ),
    "pad_vocab_size_multiple": (lambda value: value == 0 or _is_count(value), "a whole number"),
    "expand": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "dt_limit": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
        "the least and the largest step size",
    ),
    **dict.fromkeys(("tie_embeddings", "bias", "conv_bias"), (lambda value: isinstance(value, bool), "true or false")),
}


@dataclass(frozen=True)
class Mamba2Options:
    """What both layouts say of a model; time_step_limit is (0, inf) for none, token_ids are of the ends of texts."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    head_width: int
    state_size: int
    num_groups: int
    conv_width: int
    conv_bias: bool
    projection_bias: bool
    time_step_limit: tuple[float, float]
    eps: float
    is_tied: bool
    token_ids: dict[str, Any] = field(default_factory=dict)


def read_transformers_options(folder: Path) -> Mamba2Options:
    """Of a folder of transformers' Mamba2ForCausalLM.

    Raises:
        ConfigError: in one line, for a config that is none, or an option that Palimpsa-M does not have, by its name.
    """
    # Its own classes: flash-linear-attention, once imported, registers others of the name.
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config

    path = folder / "config.json"
    said = read_json_object(path, "expected the config of a model", with_infinity=True)
    _refuse_others(path, "", said, ONLY_OF_TRANSFORMERS)
    try:
        config = Mamba2Config.from_pretrained(folder, local_files_only=True)
        low, high = map(float, config.time_step_limit)
    except Exception as error:
        # Whatever its checks raise.
        raise ConfigError(f"{path}: got no config of Mamba-2 ({' '.join(str(error).split())})") from error
    architectures = said.get("architectures") or ["Mamba2ForCausalLM"]
    if not isinstance(architectures, list) or "Mamba2ForCausalLM" not in architectures:
        raise ConfigError(f"{path}: architectures: got {architectures!r}, expected ['Mamba2ForCausalLM']")
    if config.hidden_act not in ("silu", "swish"):
        raise ConfigError(f"{path}: hidden_act: got {config.hidden_act!r}, expected 'silu'")
    return Mamba2Options(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_heads,
        head_width=config.head_dim,
        state_size=config.state_size,
        num_groups=config.n_groups,
        conv_width=config.conv_kernel,
        conv_bias=config.use_conv_bias,
        projection_bias=config.use_bias,
        time_step_limit=(low, high),
        eps=config.layer_norm_epsilon,
        is_tied=config.tie_word_embeddings,
        token_ids={name: getattr(config, name) for name in TOKEN_IDS},
    )


def read_state_spaces_options(folder: Path) -> Mamba2Options:
    """Of a folder of state-spaces' mamba_ssm. Raises ConfigError: as `read_transformers_options`."""
    path = folder / "config.json"
    said = read_json_object(path, "expected the config of a model", with_infinity=True)
    config = _with_defaults(path, "", said, STATE_SPACES_DEFAULTS)
    _refuse_others(path, "", config, ONLY_OF_STATE_SPACES)
    if not isinstance(config["ssm_cfg"], dict):
        raise ConfigError(f"{path}: ssm_cfg: got {config['ssm_cfg']!r}, expected the arguments of a Mamba-2")
    ssm = _with_defaults(path, "ssm_cfg.", config["ssm_cfg"], SSM_DEFAULTS)
    _refuse_others(path, "ssm_cfg.", ssm, ONLY_OF_SSM)
    for group, values in (("", config), ("ssm_cfg.", ssm)):
        for name, (is_one, expected) in STATE_SPACES_KINDS.items():
            if name in values and not is_one(values[name]):
                raise ConfigError(f"{path}: {group}{name}: got {values[name]!r}, expected {expected}")
    try:
        inner = round(ssm["expand"] * config["d_model"])
        multiple = max(1, config["pad_vocab_size_multiple"])
        low, high = map(float, ssm["dt_limit"])
        options = Mamba2Options(
            vocab_size=-(-config["vocab_size"] // multiple) * multiple,
            d_model=config["d_model"],
            num_layers=config["n_layer"],
            num_heads=inner // ssm["headdim"],
            head_width=ssm["headdim"],
            state_size=ssm["d_state"],
            num_groups=ssm["ngroups"],
            conv_width=ssm["d_conv"],
            conv_bias=ssm["conv_bias"],
            projection_bias=ssm["bias"],
            time_step_limit=(low, high),
            eps=STATE_SPACES_EPS,
            is_tied=config["tie_embeddings"],
        )
    except OverflowError as error:
        raise ConfigError(f"{path}: got sizes that make no model ({error})") from error
    if ssm["d_ssm"] not in (None, inner):
        raise ConfigError(
            f"{path}: ssm_cfg.d_ssm: got {ssm['d_ssm']}, expected null or all {inner} channels; an MLP beside "
            "the memory has no place here"
        )
    if options.num_heads * options.head_width != inner:
        raise ConfigError(f"{path}: ssm_cfg.headdim: got {options.head_width}, expected a divisor of {inner}")
    return options


def _with_defaults(path: Path, group: str, said: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in said if name not in defaults]
    if unknown:
        raise ConfigError(
            f"{path}: {group}{unknown[0]}: nothing here has such an option{nearest(unknown[0], defaults)}"
        )
    return {**defaults, **said}


def _refuse_others(path: Path, group: str, said: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option that has another value than the only one that Palimpsa-M has."""
    for name, value in only.items():
        if name in said and said[name] != value and (said[name] or value):
            hint = (
                "; transformers' own forward pass does not read the key and gates first: without it the folder is "
                "converted as that computes it"
                if (name, group) == ("norm_before_gate", "") and said[name] is True
                else ""
            )
            raise ConfigError(
                f"{path}: {group}{name}: got {said[name]!r}, expected {value!r}: Palimpsa-M has nothing else{hint}"
            )
