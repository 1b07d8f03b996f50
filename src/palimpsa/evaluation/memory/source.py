"""What is looked into: a trained model, and the tokens that it reads."""

# B contexts, T tokens, n pairs

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.keys import convert
from palimpsa.config.schema import ModelConfig, typed
from palimpsa.model.build import build_model
from palimpsa.model.finite import check_finite
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.result import run_of
from palimpsa.tasks.build import TASKS, build_task
from palimpsa.tasks.task import Bindings, Task
from palimpsa.training.storage.trained import Checkpoint, is_folder, read_source, weights_digest

# Of a sequence: what a head keeps of it is a square of numbers.
MAX_TOKENS = 1024
# Of a task: its queries are counted over so many.
NUM_CONTEXTS = 16


@dataclass(frozen=True)
class Source:
    """A model on the CPU, in evaluation mode.

    name: of files. label: in pictures. mixer: the class of its mixers. config: of its run, None outside of one.
    facts: what is known of its training. path: where it was.
    """

    name: str
    label: str
    mixer: str
    model: LanguageModel
    config: dict[str, Any] | None
    facts: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class Sequence:
    """tokens [T] int64; pieces: each as text; origin: where they are from; note: what was cut, or ""; bindings: of
    `NUM_CONTEXTS` contexts, whose first one the tokens are."""

    tokens: Tensor
    pieces: list[str]
    origin: dict[str, Any]
    note: str = ""
    bindings: Bindings | None = None


def load_source(path: Path) -> Source:
    """The model of a run's directory, of a checkpoint, or of a folder of scripts/convert.py's.

    Raises:
        ConfigError, RunDirectoryError, ResultError: in one line, for what is none, is damaged, or is another's.
    """
    is_ours = path.is_dir() and is_folder(path)
    found = read_source(path)
    model = _folder_model(path) if is_ours else _checkpoint_model(found)
    name, label = (found.model_config.get(key, "model") for key in ("name", "label"))
    facts: dict[str, Any] = {"steps": found.step or None, "weights_sha256": weights_digest(found.weights)}
    if found.config is not None:
        run = run_of(found.config)
        label = run["label"]
        name = f"{run['task']}_{run['model']}_{run['scale']}_lr_{run['lr']}_seed_{run['seed']}"
        facts |= {key: run[key] for key in ("task", "scale", "lr", "seed")}
    return Source(
        name=name,
        label=label,
        mixer=type(next(model.mixers())).__name__,
        model=model.eval(),
        config=found.config,
        facts=facts,
        path=path,
    )


def _folder_model(path: Path) -> LanguageModel:
    # Here and not above: transformers.
    from palimpsa.conversion.folder import load_folder

    return load_folder(path).model


def _checkpoint_model(found: Checkpoint) -> LanguageModel:
    try:
        model = build_model(convert(ModelConfig, found.model_config, "model_config."), seed=None)
        model.load_state_dict(found.weights)
    except (ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(f"{found.path}: got a model that cannot be built ({reason})") from error
    check_finite(found.weights, found.path)
    return model


def text_sequence(source: Source, file: Path) -> Sequence:
    """The first `MAX_TOKENS` tokens of a text, by the tokenizer that the model was trained with.

    Raises:
        ConfigError: for a file that is no text or is empty, or a model whose tokenizer is not known or not here.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text: got {str(file)!r}, expected a file of UTF-8 text ({_reason(error)})") from error
    if not text.strip():
        raise ConfigError(f"--text: got {str(file)!r}, which is empty, expected a text of at least one token")
    tokenizer = _tokenizer(source)
    ids = [int(one) for one in tokenizer.encode(text)]
    kept, note = ids[:MAX_TOKENS], ""
    if len(ids) > MAX_TOKENS:
        note = f"{file.name}: got {len(ids):,} tokens, read are the first {MAX_TOKENS:,}; the rest is cut"
    if max(kept) >= source.model.embedding.weight.shape[0]:
        raise ConfigError(
            f"--text: got token {max(kept)} of {file.name}, expected ids below the "
            f"{source.model.embedding.weight.shape[0]} words of the model"
        )
    origin = {"kind": "text", "file": file.name, "num_tokens": len(kept), "num_cut": len(ids) - len(kept)}
    return Sequence(torch.tensor(kept), [tokenizer.decode([one]) for one in kept], origin, note)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "its bytes are none") or type(error).__name__


def _tokenizer(source: Source) -> Any:
    # Here and not above: transformers, or tokenizers' libraries.
    from palimpsa.conversion.tokenizer import FACTS, read_folder_tokenizer
    from palimpsa.evaluation.models.public_folders import tokenizer_of_a_folder
    from palimpsa.tasks.data_digests import split_folder
    from palimpsa.text.manifest import read_manifest
    from palimpsa.text.own_tokenizer import load_own_tokenizer
    from palimpsa.text.tokenizers import TokenizerMissingError

    if source.config is None and source.path.is_dir() and is_folder(source.path):
        has_own = (source.path / FACTS).is_file()
        return read_folder_tokenizer(source.path) if has_own else tokenizer_of_a_folder(source.path)
    data = {} if source.config is None else source.config["task"]
    if data.get("data") is None:
        raise ConfigError(
            f"--text: got a text for {source.path}, which has no tokenizer, expected a model that was trained on text"
        )
    try:
        return load_own_tokenizer(read_manifest(split_folder(data["data"], "train")))
    except (TokenizerMissingError, ConfigError) as error:
        raise ConfigError(f"--text: the tokenizer of {source.path} is that of its training text: {error}") from error


def task_sequence(source: Source, kind: str | None) -> Sequence:
    """A context of the test split of a run's last stage, in which queries ask for pairs that were stored.

    Args:
        kind: of the task, which has to be the run's own; None: that.

    Raises:
        ConfigError: for a model that no run has trained, another task than the run's, one without such queries, or
            contexts of more than `MAX_TOKENS`.
    """
    if source.config is None:
        raise ConfigError(
            f"--task: got {source.path}, expected the directory of a run, which says how its contexts are made; or "
            "--text FILE"
        )
    own = source.config["task"].get("kind", "")
    if kind is not None and kind != own:
        raise ConfigError(f"--task: got {kind!r}, expected {own!r}, on which {source.path} was trained")
    if own not in TASKS or TASKS[own].bindings is Task.bindings:
        raise ConfigError(f"--task: got {own!r}, which stores no pairs that it asks for, expected --text FILE")
    config = typed(source.config)
    task = build_task(config.task, config.seed)
    stage = task.stages[-1]
    if stage.context > MAX_TOKENS:
        raise ConfigError(f"--task: got contexts of {stage.context:,} tokens, expected at most {MAX_TOKENS:,}")
    bindings = task.bindings(stage, "test", torch.arange(NUM_CONTEXTS))
    assert bindings is not None
    tokens = bindings.tokens[0]
    origin = {"kind": "task", "task": own, "num_tokens": len(tokens), "num_pairs": bindings.queries.shape[1]}
    return Sequence(tokens, [str(one) for one in tokens.tolist()], origin, "", bindings)
