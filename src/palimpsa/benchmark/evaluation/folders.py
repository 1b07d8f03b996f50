"""Models with random weights as folders of transformers: what a benchmark evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from palimpsa.benchmark.schema import EvaluationSpeedConfig
from palimpsa.config.compose import compose_values
from palimpsa.config.errors import ConfigError

LLAMA = "llama"


def load_tokenizer(name: str) -> Any:
    """transformers' tokenizer of a hub's name or of a folder. Raises ConfigError where there is none."""
    from transformers import AutoTokenizer, LlamaTokenizer

    # A SentencePiece file alone does not say whose it is.
    is_bare = {path.name for path in Path(name).glob("*")} == {"tokenizer.model"}
    try:
        return (LlamaTokenizer if is_bare else AutoTokenizer).from_pretrained(name)
    except Exception as error:
        # Whatever its many classes and the hub raise.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"tokenizer: got {name!r}, which cannot be read ({reason}), expected a folder") from error


def model_keys(model: str, num_words: int) -> dict[str, Any]:
    """The keys of a file of configs/model. Raises ConfigError for one that there is not, or of fewer words."""
    keys = compose_values(["task=commonsense", f"model={model}"], "train")["model"]
    if num_words > keys["vocab_size"]:
        raise ConfigError(
            f"tokenizer: got one of {num_words} words, expected at most the {keys['vocab_size']} of {model}"
        )
    return keys


def write_folder(config: EvaluationSpeedConfig, model: str, tokenizer: Any, folder: Path) -> int:
    """Writes a model with its tokenizer; returns its number of parameters.

    Args:
        model: `LLAMA`, of `config.llama`, or a file of configs/model.
        tokenizer: from `load_tokenizer`.

    Raises:
        ConfigError: see `model_keys`.
    """
    from transformers.utils.logging import disable_progress_bar

    # Of files that are written in a second.
    disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = _llama(config, len(tokenizer)) if model == LLAMA else _own(config, model, len(tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(one.numel() for one in network.parameters())


def _llama(config: EvaluationSpeedConfig, num_words: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Any = vars(config.llama)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=num_words, max_position_embeddings=config.context, tie_word_embeddings=True, **sizes)
    )


def _own(config: EvaluationSpeedConfig, model: str, num_words: int) -> Any:
    from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM

    return PalimpsaForCausalLM(PalimpsaConfig.of_model(model_keys(model, num_words), context=config.context))
