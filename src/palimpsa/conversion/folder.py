"""A folder of transformers: written whole or not at all, and read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import storable
from palimpsa.conversion.card import facts_of_run, model_card
from palimpsa.conversion.checkpoint import Checkpoint, write_weights
from palimpsa.conversion.tokenizer import export_tokenizer
from palimpsa.mixers.parameters import MASTER_DTYPE
from palimpsa.model.build import SKELETON_DEFAULTS, SKELETON_KEYS
from palimpsa.model.finite import check_finite
from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM
from palimpsa.runs.files import whole_folder
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import Block, ResultError
from palimpsa.tasks.data_digests import split_folder
from palimpsa.text.manifest import Manifest, read_manifest

FACTS = "training.json"
# Of its values, those that are read again, where they are known.
FACT_KINDS = {
    **{"steps": "count", "tokens": "count", "context": "count", "seed": "count", "learning_rate": "positive"},
    **{"validation_loss": "number", "validation_perplexity_per_byte": "number"},
}
CARD = "README.md"
# What a config is made of.
MODEL_KEYS = ("name", "label", *SKELETON_KEYS, "mixer")


def export_folder(checkpoint: Checkpoint, folder: Path, *, tokenizer: str | None = None) -> list[str]:
    """Writes a checkpoint's model as a folder that `AutoModelForCausalLM` loads.

    Args:
        folder: must not be there.
        tokenizer: where the one that it was trained with is; None: where it was then.

    Returns:
        lines of a report: every tensor, and what lies beside them.

    Raises:
        ConfigError: for a folder that is there, a model that cannot be built, weights that are not its own or not
            finite, or a tokenizer that is another one, or has more words than the model.
        OSError: where it cannot be written.
    """
    if os.path.lexists(folder):
        raise ConfigError(f"{folder}: is there already, expected a new folder")
    lacking = [key for key in MODEL_KEYS if key not in checkpoint.model_config and key not in SKELETON_DEFAULTS]
    if lacking:
        raise ConfigError(f"{checkpoint.path}: model_config: has no {lacking[0]}, expected {', '.join(MODEL_KEYS)}")
    manifest, missing = manifest_of(checkpoint)
    words = checkpoint.model_config["vocab_size"]
    if manifest is not None and manifest.tokenizer.vocab_size > words:
        raise ConfigError(
            f"tokenizer: got {manifest.tokenizer.vocab_size} words of {manifest.tokenizer.name}, expected at most the "
            f"{words} of the model"
        )
    facts = facts_of_run(checkpoint, manifest)
    end = None if manifest is None else manifest.tokenizer.end_of_text
    try:
        config = PalimpsaConfig.of_model(
            checkpoint.model_config, context=facts["context"], eos_token_id=end, pad_token_id=end
        )
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: model_config: {error}") from error
    model = PalimpsaForCausalLM(config).eval()
    _fill(model, checkpoint)
    check_finite(checkpoint.weights, checkpoint.path)
    told = write_folder(
        model,
        folder,
        facts,
        lambda told: model_card(config.label, model.model.num_parameters, facts, told),
        lambda partial: missing if manifest is None else export_tokenizer(manifest.tokenizer, partial, tokenizer),
    )
    return [*listed(model.model.state_dict().items()), told, f"{folder}: the same bits when it was read back"]


def write_folder(
    model: PalimpsaForCausalLM,
    folder: Path,
    facts: dict[str, Any],
    card: Callable[[str], str],
    write_tokenizer: Callable[[Path], str],
) -> str:
    """Writes a model with what lies beside it, whole or not at all, and reads it back.

    Args:
        folder: must not be there.
        facts: of its training, for programs.
        card: the text of its README.md, from a line that says what became of the tokenizer.
        write_tokenizer: puts it into a folder, and returns that line.

    Returns:
        the line.

    Raises:
        ConfigError: what `write_tokenizer` does, and for tensors that are others when they are read back.
        OSError: where it cannot be written.
    """
    with whole_folder(folder) as partial:
        try:
            model.save_pretrained(partial)
        except SafetensorError as error:
            # Of the disk: what it has is in memory, and whole.
            raise OSError(None, str(error), str(folder)) from error
        told = write_tokenizer(partial)
        (partial / FACTS).write_text(json.dumps(storable(facts), indent=1, ensure_ascii=False), encoding="utf-8")
        (partial / CARD).write_text(card(told), encoding="utf-8")
        again = PalimpsaForCausalLM.from_pretrained(partial)
        for name, weight in model.state_dict().items():
            if not torch.equal(again.state_dict()[name], weight):
                raise ConfigError(f"{name}: was read back as another tensor, expected the same bits")
    return told


def import_folder(folder: Path, path: Path) -> list[str]:
    """Writes the weights of a folder as a trainer's checkpoint, in fp32: what trains on starts a new optimiser.

    Args:
        folder: of `export_folder`'s, or of `save_pretrained` after more training.
        path: must not be there.

    Returns:
        lines of a report.

    Raises:
        ConfigError: for a file that is there, a folder without a model, or see `read_facts`.
        OSError: where it cannot be written.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path}: is there already, expected a new file")
    model = load_folder(folder)
    facts = read_facts(folder)
    weights = {
        name: weight.to(MASTER_DTYPE) if weight.is_floating_point() else weight
        for name, weight in model.model.state_dict().items()
    }
    config = model.config
    model_config = {"name": config.name, "label": config.label, **config.model_keys()}
    write_weights(path, weights, model_config, facts.get("steps") or 0)
    return [*listed(weights.items()), str(path)]


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder says of its model's training, as `write_folder` was given it; nothing where it says nothing.

    Raises:
        ConfigError: naming file and key, for what is no JSON, or a value that is none of `FACT_KINDS`.
    """
    path = folder / FACTS
    if not path.is_file():
        return {}
    try:
        facts = read_json_object(path, "expected what is known of a run")
        for name, kind in FACT_KINDS.items():
            Block(path, "", facts).get(name, kind, optional=True)
    except ResultError as error:
        raise ConfigError(str(error)) from error
    return facts


def load_folder(folder: Path) -> PalimpsaForCausalLM:
    """The model of a folder, on the CPU, in evaluation mode.

    Raises:
        ConfigError: in one line, for a folder without a model, or one whose model is damaged or another's, or has
            weights that are not finite.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: got no config.json in it, expected the folder of a model")
    kind = read_json_object(folder / "config.json", "expected the config of a model").get("model_type")
    if kind != PalimpsaConfig.model_type:
        raise ConfigError(f"{folder}: got a model of type {kind!r}, expected {PalimpsaConfig.model_type!r}")
    try:
        model, found = PalimpsaForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:
        # Whatever a damaged file makes of the library.
        raise ConfigError(f"{folder}: got no model that can be loaded ({' '.join(str(error).split())})") from error
    unexpected = sorted(found["unexpected_keys"])
    if unexpected:
        # transformers leaves them out, and warns.
        raise ConfigError(
            f"{folder}: got weights {unexpected[0]} and {len(unexpected) - 1} more, which the model of its config.json "
            "does not have"
        )
    check_finite(model.model.state_dict(), folder)
    return model


def manifest_of(checkpoint: Checkpoint) -> tuple[Manifest | None, str]:
    """What the training text says of itself, where it still is; else None and why."""
    task = {} if checkpoint.config is None else checkpoint.config["task"]
    if task.get("data") is None:
        return None, "tokenizer: not known, the checkpoint lies outside of a run that trains on text"
    try:
        manifest = read_manifest(split_folder(task["data"], "train"))
    except ConfigError as error:
        return None, f"tokenizer: not known, the run's data are not here ({error})"
    if manifest.digest != task.get("train_digest"):
        return None, f"tokenizer: not known, {task['data']} has other data than the run was trained on"
    return manifest, ""


def _fill(model: PalimpsaForCausalLM, checkpoint: Checkpoint) -> None:
    own, given = model.model.state_dict(), checkpoint.weights
    wrong = [name for name in own if name not in given or given[name].shape != own[name].shape]
    wrong += sorted(given.keys() - own.keys())
    if wrong:
        raise ConfigError(
            f"{checkpoint.path}: got {wrong[0]} missing, unknown or of another shape, and {len(wrong) - 1} more, "
            "expected the weights of its model_config"
        )
    model.model.load_state_dict(given)


def listed(weights: Iterable[tuple[str, Any]]) -> list[str]:
    """A line for each tensor, and what they are together."""
    found: list[tuple[str, Tensor]] = list(weights)
    widest = max(len(name) for name, _ in found)
    lines = [f"{name:<{widest}}  {str(x.dtype).removeprefix('torch.')}  {list(x.shape)}" for name, x in found]
    numbers = sum(x.numel() for _, x in found)
    return [*lines, f"{len(found)} tensors of {numbers:,} numbers"]
