"""What came of a run of pretraining: its loss curve, its perplexity, and a few words that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.draw.loss_curve import loss_curve
from palimpsa.evaluation.sampling import sample_tokens
from palimpsa.evaluation.trained import load_trained
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import FINISHED
from palimpsa.tasks.data_digests import split_folder
from palimpsa.text.manifest import read_manifest
from palimpsa.text.own_tokenizer import load_own_tokenizer
from palimpsa.text.tokenizers import TokenizerMissingError

NUM_TOKENS = 200
TEMPERATURE = 0.8
PROMPT = "She "


def is_pretrained(folder: Path) -> bool:
    """Whether the run in a directory has trained to its end: one that failed or diverged has a result too."""
    path = RunDirectory(folder).result_file
    return path.exists() and read_json_object(path, "expected a run's result")["status"] == FINISHED


def show_pretraining(folder: Path, *, prompt: str = PROMPT, seed: int = 0) -> list[str]:
    """Draws the loss curve beside the run, and has its model write.

    Args:
        folder: of a finished run of task commonsense.
        prompt: what the sample goes on from.
        seed: of the sample.

    Returns:
        lines to print, the picture's path among them.

    Raises:
        RunDirectoryError: see `load_trained`.
        ConfigError: where the data are gone, or their tokenizer makes other ids today.
    """
    trained = load_trained(folder)
    result = read_json_object(RunDirectory(folder).result_file, "expected a run's result")
    config, (stage,) = trained.config, result["stages"]
    name, steps, tokens = config["model"]["label"], trained.step, trained.step * config["task"]["tokens_per_step"]
    title = f"Pretraining {name}"
    subtitle = (
        f"{tokens:,} tokens in {steps:,} steps, learning rate {config['optimizer']['lr']:g}, seed {config['seed']}"
    )
    if config["scale"]["name"] == "laptop":
        subtitle += "; demonstrates the pipeline"
    history = pd.read_csv(folder / "history.csv")
    picture = save_figure(loss_curve(history, title=title, subtitle=subtitle), folder / "loss")[0]
    return [
        f"{title}: {subtitle}",
        f"validation loss {stage['validation_loss']:.3f} nats a token, perplexity {stage['validation_perplexity']:.2f} "
        f"a token and {stage['validation_perplexity_per_byte']:.2f} a byte",
        f"loss curve: {picture}",
        f"a sample: {_sample(trained.model, config, prompt, seed)}",
    ]


def _sample(model: Any, config: dict[str, Any], prompt: str, seed: int) -> str:
    manifest = read_manifest(split_folder(config["task"]["data"], "train"))
    facts = manifest.tokenizer
    try:
        tokenizer = load_own_tokenizer(manifest)
    except TokenizerMissingError as error:
        # A relative path says not where it was.
        return f"none: {error}"
    tokens = tokenizer.encode(prompt)
    written = sample_tokens(
        model,
        tokens,
        NUM_TOKENS,
        vocab_size=facts.vocab_size,
        end_of_text=facts.end_of_text,
        temperature=TEMPERATURE,
        generator=torch.Generator().manual_seed(seed),
    )
    return repr(tokenizer.decode([*tokens, *written]))
