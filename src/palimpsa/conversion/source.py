"""A model without metaplasticity that is converted: its weights by our names, and where each came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.conversion.card import facts_of_run
from palimpsa.conversion.checkpoint import read_trained
from palimpsa.conversion.folder import load_folder, manifest_of, read_facts
from palimpsa.conversion.mamba2 import read_mamba2
from palimpsa.conversion.mamba2_options import TOKEN_IDS, read_state_spaces_options, read_transformers_options
from palimpsa.conversion.tokenizer import copy_tokenizer, export_tokenizer
from palimpsa.conversion.weight_files import check_is_folder_of_a_model
from palimpsa.model.build import SKELETON_DEFAULTS, SKELETON_KEYS
from palimpsa.model.hf import PalimpsaConfig
from palimpsa.runs.checkpoints import is_sharded
from palimpsa.runs.result import read_json_object

MODEL_KEYS = ("name", "label", *SKELETON_KEYS, "mixer")
# transformers' type of a Mamba-2; state-spaces' configs have none.
MAMBA2 = "mamba2"
CONVERTED_MIXERS = ("palimpsa.mixers.PalimpsaD", "palimpsa.mixers.PalimpsaM")


@dataclass(frozen=True)
class Source:
    """What is converted.

    Args:
        path: as it was named.
        kind: in words.
        model_config: the keys of `configs/model`, of a mixer without metaplasticity.
        weights: by their names in `LanguageModel`.
        origins: by the same names, what they are called in the source.
        dropped: tensors of the source that the model does not take, each with the reason.
        facts: of its training, as training.json has them.
        token_ids: of the ends of texts, by transformers' names.
        write_tokenizer: puts its tokenizer into a folder, and says what it did.
        notes: lines for the report.
    """

    path: Path
    kind: str
    model_config: dict[str, Any]
    weights: dict[str, Tensor]
    origins: dict[str, str]
    facts: dict[str, Any]
    write_tokenizer: Callable[[Path], str]
    dropped: dict[str, str] = field(default_factory=dict)
    token_ids: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_source(path: Path, *, tokenizer: str | None = None, num_norm_groups: int | None = None) -> Source:
    """The model at a path: a folder of transformers' Mamba-2, of state-spaces' or of ours, or a run or checkpoint.

    Args:
        tokenizer: where the model's tokenizer is, if not beside it.
        num_norm_groups: of a Mamba-2's output norm; None: one a group of keys, as Mamba-2 has it.

    Raises:
        ConfigError, RunDirectoryError: in one line, for what is none of these, is damaged, or cannot be converted.
    """
    if not path.exists():
        raise ConfigError(f"{path}: not there, expected a folder of a model, or a run's directory")
    keys = _config_of(path)
    is_mamba2 = keys.get("model_type") == MAMBA2 or ("model_type" not in keys and "n_layer" in keys)
    if num_norm_groups is not None and not is_mamba2:
        raise ConfigError(f"--norm-groups: got {num_norm_groups}, expected none: {path} says itself how it normalises")
    if is_mamba2:
        return _of_mamba2(path, "model_type" in keys, num_norm_groups, tokenizer)
    source = _of_our_folder(path, tokenizer) if "model_type" in keys else _of_a_checkpoint(path, tokenizer)
    _check_is_not_metaplastic(source)
    return source


def _config_of(path: Path) -> dict[str, Any]:
    """The config.json of a folder of a model; empty for a run's directory, or a checkpoint's file or shards."""
    if not path.is_dir() or is_sharded(path) or (path / "checkpoints").is_dir():
        return {}
    check_is_folder_of_a_model(path)
    keys = read_json_object(path / "config.json", "expected the config of a model", with_infinity=True)
    if {"task", "model"} <= keys.keys():
        return {}
    kind = keys.get("model_type")
    known = (MAMBA2, PalimpsaConfig.model_type)
    if kind not in known and (kind is not None or "n_layer" not in keys):
        raise ConfigError(
            f"{path}: got a model of type {kind!r}, expected {', '.join(map(repr, known))}, or a config.json of "
            "state-spaces' mamba_ssm, which has no type but n_layer and ssm_cfg"
        )
    return keys


def _of_mamba2(path: Path, is_transformers: bool, num_norm_groups: int | None, tokenizer: str | None) -> Source:
    options = read_transformers_options(path) if is_transformers else read_state_spaces_options(path)
    found = read_mamba2(path, options, num_norm_groups)
    return Source(
        path=path,
        kind=f"a folder of {'transformers' if is_transformers else 'state-spaces'}' Mamba-2",
        model_config=found.model_config,
        weights=found.weights,
        origins=found.origins,
        dropped=found.dropped,
        facts={},
        token_ids=options.token_ids,
        write_tokenizer=lambda folder: copy_tokenizer(path if tokenizer is None else Path(tokenizer), folder),
        notes=found.notes,
    )


def _of_our_folder(path: Path, tokenizer: str | None) -> Source:
    model = load_folder(path)
    config = model.config
    facts = read_facts(path)
    weights = model.model.state_dict()
    return Source(
        path=path,
        kind="an exported folder of this repository's",
        model_config={"name": config.name, "label": config.label, **config.model_keys()},
        weights=weights,
        origins={name: f"model.{name}" for name in weights},
        facts={**facts, "context": facts.get("context") or config.context},
        token_ids={name: getattr(config, name, None) for name in TOKEN_IDS},
        write_tokenizer=lambda folder: copy_tokenizer(path if tokenizer is None else Path(tokenizer), folder),
    )


def _of_a_checkpoint(path: Path, tokenizer: str | None) -> Source:
    checkpoint = read_trained(path)
    keys = {**SKELETON_DEFAULTS, **checkpoint.model_config}
    lacking = [key for key in MODEL_KEYS if key not in keys]
    if lacking:
        raise RunDirectoryError(
            f"{checkpoint.path}: model_config: has no {lacking[0]}, expected {', '.join(MODEL_KEYS)}"
        )
    manifest, missing = manifest_of(checkpoint)
    end = None if manifest is None else manifest.tokenizer.end_of_text
    return Source(
        path=path,
        kind="a checkpoint of this repository's",
        model_config={key: keys[key] for key in MODEL_KEYS},
        weights=checkpoint.weights,
        origins={name: f"model.{name}" for name in checkpoint.weights},
        facts=facts_of_run(checkpoint, manifest),
        token_ids={"eos_token_id": end, "pad_token_id": end},
        write_tokenizer=lambda folder: (
            missing if manifest is None else export_tokenizer(manifest.tokenizer, folder, tokenizer)
        ),
    )


def _check_is_not_metaplastic(source: Source) -> None:
    mixer = source.model_config["mixer"]
    target = mixer.get("_target_")
    if target not in CONVERTED_MIXERS:
        raise ConfigError(
            f"{source.path}: mixer._target_: got {target!r}, expected one of {', '.join(CONVERTED_MIXERS)}: no other "
            "model is Palimpsa without importances"
        )
    if mixer.get("metaplastic", True):
        raise ConfigError(f"{source.path}: mixer.metaplastic: got True, expected False: it is metaplastic already")
