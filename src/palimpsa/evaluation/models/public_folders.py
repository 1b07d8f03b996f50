"""A folder of transformers: its tokenizer, and its model where that is a causal language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.models.scoring import TransformersNetwork
from palimpsa.model.finite import check_finite
from palimpsa.runs.schema import Block, ResultError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
CAUSAL = "expected a causal language model, which reads what comes before a token alone"
# What the last of these is changes nothing before it, where a model is causal; between kernels' roundings and what a
# neighbour changes, relative to the largest logit.
NUM_PROBED = 8
MOST_CHANGE = 1e-4


def tokenizer_of_a_folder(folder: Path) -> Any:
    """The tokenizer of a folder. Raises ConfigError where there is none, or one without an end of text."""
    from transformers import AutoTokenizer

    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        # For some models transformers would make one without a word, and without words.
        raise ConfigError(
            f"checkpoint: got {str(folder)!r} without a tokenizer, expected one of {', '.join(TOKENIZER_FILES)} in it"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # Whatever its many classes raise for files that are missing or damaged.
        raise ConfigError(
            f"checkpoint: got {str(folder)!r} without a tokenizer that can be read: {_first_line(error)}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"checkpoint: got a tokenizer without an end of text in {folder}, expected one: eos_token")
    return tokenizer


def model_of_a_folder(folder: Path, device: torch.device) -> Any:
    """The causal language model of a folder, in float32 on a device, in evaluation mode.

    Raises:
        ConfigError: in one line, for a folder whose model cannot be read, is damaged, predicts what is no number, or is
            another kind of model.
    """
    kind = class_of_a_folder(folder)
    try:
        loaded: Any = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        # As above.
        raise ConfigError(
            f"checkpoint: got {str(folder)!r} without a model that can be read: {_first_line(error)}"
        ) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        # transformers draws them at random, and warns.
        raise ConfigError(
            f"checkpoint: got {str(folder)!r} without weights for {missing[0]} and {len(missing) - 1} more, expected "
            "all that its config.json says"
        )
    # Not buffers: a mask of minus infinity is among them.
    check_finite(dict(model.named_parameters()), f"checkpoint: {folder}")
    model = model.to(device).eval()
    _check_predictions(model, folder)
    return model


@torch.no_grad()
def _check_predictions(model: Any, folder: Path) -> None:
    """Raises ConfigError for a model whose logits are not finite, or change with a token that comes after them."""
    network = TransformersNetwork(model)
    length = min(NUM_PROBED, network.max_tokens or NUM_PROBED)
    tokens = torch.arange(1, length + 1, device=network.device)[None] % network.vocab_size
    rows, positions = torch.zeros(length - 1, dtype=torch.int64), torch.arange(length - 1)

    def logits_before_the_last() -> torch.Tensor:
        return network.logits_at(tokens, rows.to(tokens.device), positions.to(tokens.device))(slice(None)).float()

    before = logits_before_the_last()
    tokens[0, -1] = (tokens[0, -1] + 1) % network.vocab_size
    after = logits_before_the_last()
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ConfigError(
            f"checkpoint: got {type(model).__name__} in {folder} with logits that are not finite, expected finite "
            "ones: its weights are damaged, or too large for float32"
        )
    if (after - before).abs().max() > MOST_CHANGE * before.abs().max():
        raise ConfigError(f"checkpoint: got {type(model).__name__} in {folder}, {CAUSAL}")


def class_of_a_folder(folder: Path) -> Any:
    """transformers' own class of causal language models, where it has one.

    Once imported, flash-linear-attention puts its own in the place of some, Mamba-2 among them, which need a GPU.

    Raises:
        ConfigError: naming the architecture, where there is none, or the folder has a model with another head; or the
            key of a config.json that is none of transformers'.
    """
    import transformers
    from transformers.models.auto.configuration_auto import (
        CONFIG_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    content, names = json.loads((folder / "config.json").read_text(encoding="utf-8")), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    top = Block(folder / "config.json", "", content)
    try:
        kind, architectures = top.get("model_type", "words"), top.get("architectures", "list", optional=True) or []
    except ResultError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    # "BertForMaskedLM", and "T5ForConditionalGeneration", which reads a second text.
    is_other = any(
        "For" in name and not name.endswith("ForCausalLM") and name not in names.values()
        for name in map(str, architectures)
    )
    if is_other or content.get("is_encoder_decoder") or (kind in CONFIG_MAPPING_NAMES and kind not in names):
        architecture = ", ".join(map(str, architectures or [f"a model of type {kind!r}"]))
        raise ConfigError(f"checkpoint: got {architecture} in {folder}, {CAUSAL}")
    return getattr(transformers, names[kind]) if kind in names else transformers.AutoModelForCausalLM


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
