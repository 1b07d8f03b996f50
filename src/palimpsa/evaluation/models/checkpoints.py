"""The model that is evaluated, with its tokenizer and the lengths that it was trained on: of a run or of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.keys import is_file_name
from palimpsa.evaluation.models.codecs import Codec, OwnCodec, TransformersCodec, WithoutSpecialTokens
from palimpsa.evaluation.models.public_folders import class_of_a_folder, model_of_a_folder, tokenizer_of_a_folder
from palimpsa.evaluation.models.scoring import NativeNetwork, Network, TransformersNetwork
from palimpsa.evaluation.schema import EvaluateConfig
from palimpsa.mixers.plasticity import set_strength
from palimpsa.model.finite import check_finite
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.result import run_of
from palimpsa.tasks.data_digests import split_folder
from palimpsa.text.files import files_sha256
from palimpsa.text.golden import check_tokenizer
from palimpsa.text.manifest import json_sha256, read_manifest
from palimpsa.text.own_tokenizer import load_own_tokenizer
from palimpsa.text.tokenizers import TokenizerMissingError

EXPECTED = "expected the directory of a language model's run, or a Hugging Face folder with config.json and weights"

# Of `model.hf.PalimpsaConfig`, whose import takes seconds.
OWN_MODEL_TYPE = "palimpsa"


@dataclass(frozen=True)
class Trained:
    """What is known of a model's training; None where nobody says.

    scale, seed, lr: of the run. steps, tokens: that it was trained for.
    """

    scale: str | None = None
    seed: int | None = None
    lr: float | None = None
    steps: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that can be evaluated.

    name: of files. label: in tables. max_length: tokens read before a target. trained: see there. data: the folder of
    token shards that it was trained on; None where there is none. digest: SHA-256 over its weights and its tokenizer,
    and the strength that it is given.
    """

    name: str
    label: str
    network: Network
    codec: Codec
    max_length: int
    trained: Trained
    data: str | None
    digest: str

    @property
    def num_parameters(self) -> int:
        return self.network.num_parameters


def load_evaluated(config: EvaluateConfig) -> EvaluatedModel:
    """The model that a config names.

    Raises:
        ConfigError, RunDirectoryError: in one line: there is no model, no tokenizer, or one of more words than the
            model has, or the files change while they are read.
    """
    device, dtype = settled_device(config.device), settled_dtype(config.dtype, config.device)
    folder = Path(str(config.checkpoint)).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"checkpoint: got {str(folder)!r}, which is no folder, {EXPECTED}{_how_to_make(folder)}")
    kind = _content(folder)
    if kind.get("model_type") == OWN_MODEL_TYPE:
        found = _of_an_export(config, folder, device, dtype)
    elif "model_type" in kind:
        if config.strength is not None:
            raise ConfigError(f"strength: got {config.strength}, expected null with {folder}, which is no Palimpsa")
        found = _of_transformers(config, folder, device, dtype)
    elif {"task", "model"} <= set(kind):
        found = _of_a_run(config, folder, device, dtype)
    else:
        raise ConfigError(f"checkpoint: got {str(folder)!r}, without a model in it, {EXPECTED}")
    if found.codec.vocab_size > found.network.vocab_size:
        raise ConfigError(
            f"checkpoint: got a tokenizer of {found.codec.vocab_size} words with {folder}, expected at most the "
            f"{found.network.vocab_size} of its model"
        )
    if not 0 <= found.codec.prefix_token < found.network.vocab_size:
        raise ConfigError(
            f"evaluation.prefix_token: got {found.codec.prefix_token}, expected an id below {found.network.vocab_size}"
        )
    if config.strength is not None:
        name = found.name if config.name is not None else f"{found.name}_strength_{config.strength:g}"
        label, digest = f"{found.label}, strength {config.strength:g}", json_sha256([found.digest, config.strength])
        found = replace(found, name=name, label=label, digest=digest)
    if not is_file_name(found.name):
        raise ConfigError(f"name: got {found.name!r}, expected letters, digits, '_', '-', '+' and '.': name=...")
    return found


def settled_device(device: str) -> torch.device:
    """ "auto" is the GPU, where there is one. ConfigError for one that there is not."""
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("device: got 'cuda', expected cpu or auto: there is no GPU here")
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")


def settled_dtype(dtype: str, device: str) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU, float32 on a CPU."""
    if dtype == "auto":
        dtype = "bfloat16" if settled_device(device).type == "cuda" else "float32"
    return getattr(torch, dtype)


def _how_to_make(folder: Path) -> str:
    return "; make pretrain trains a small one" if not folder.exists() else ""


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"checkpoint: got {str(folder)!r}, without a config.json in it, {EXPECTED}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"checkpoint: {folder / 'config.json'} cannot be read ({error}), {EXPECTED}") from error
    return content if isinstance(content, dict) else {}


@contextmanager
def _unchanged(path: Path) -> Iterator[str]:
    """For what reads a file or a folder: `files_sha256` of the same bytes.

    Raises:
        ConfigError: where something was written or removed meanwhile: weights and digest would be of two models.
    """
    before = _digest(path)
    yield before
    if _digest(path) != before:
        raise ConfigError(
            f"checkpoint: {path} was written or removed while it was read, expected one that stays: evaluate a run "
            "that has ended, or a copy"
        )


def _digest(path: Path) -> str:
    """ "" where there is nothing, or no longer: a run that still trains removes older checkpoints."""
    try:
        return files_sha256(path)
    except FileNotFoundError:
        return ""


def _of_a_run(config: EvaluateConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> EvaluatedModel:
    # Here and not above: it imports what trains, which takes seconds, and a folder needs none of it.
    from palimpsa.evaluation.trained import load_trained, newest_checkpoint

    path = newest_checkpoint(folder)
    with _unchanged(path) as digest:
        trained = load_trained(folder, path)
    check_finite(dict(trained.model.named_parameters()), f"checkpoint: {folder}")
    own, task = trained.config, trained.config["task"]
    # See `read_stored_config`: an old run's task says no kind.
    if task.get("kind") != "commonsense":
        raise RunDirectoryError(f"checkpoint: got a run of task {task['name']} in {folder}, {EXPECTED}")
    data = config.training_data or task["data"]
    try:
        tokenizer = load_own_tokenizer(read_manifest(split_folder(data, "train")))
    except TokenizerMissingError as error:
        raise ConfigError(f"checkpoint: the tokenizer of {folder} is missing: {error}") from error
    except ConfigError as error:
        raise ConfigError(
            f"training_data: the tokenizer of {folder} is that of its token shards: {error}; training_data=FOLDER says "
            "where they are"
        ) from error
    run = run_of(own)
    return EvaluatedModel(
        name=config.name or f"{run['model']}_{run['scale']}_lr_{run['lr']}_seed_{run['seed']}",
        label=run["label"],
        network=NativeNetwork(_at_strength(trained.model, config.strength).to(device), dtype),
        codec=OwnCodec(tokenizer, config.evaluation.prefix_token),
        max_length=config.evaluation.max_length or task["context"],
        trained=Trained(
            scale=run["scale"],
            seed=run["seed"],
            lr=run["lr"],
            steps=trained.step,
            tokens=trained.step * task["tokens_per_step"],
        ),
        data=data,
        digest=json_sha256([digest, tokenizer.facts.sha256, tokenizer.facts.end_of_text]),
    )


def _at_strength(model: LanguageModel, strength: float | None) -> LanguageModel:
    """The model with its precisions multiplied; None: as it is. Raises ConfigError for one without importances."""
    if strength is not None:
        try:
            set_strength(model, strength)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return model


def _of_an_export(config: EvaluateConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> EvaluatedModel:
    """What `scripts/convert.py export` wrote, by the same code as the run that it came from."""
    from palimpsa.conversion.folder import load_folder, read_facts
    from palimpsa.conversion.tokenizer import FACTS as TOKENIZER_FACTS
    from palimpsa.conversion.tokenizer import read_folder_tokenizer

    prefix = config.evaluation.prefix_token
    with _unchanged(folder) as digest:
        model = load_folder(folder)
        facts = read_facts(folder)
        # A folder that training by other means has written has a tokenizer of transformers at most.
        has_own = (folder / TOKENIZER_FACTS).is_file()
        codec: Codec = (
            OwnCodec(read_folder_tokenizer(folder), prefix)
            if has_own
            else TransformersCodec(tokenizer_of_a_folder(folder), prefix)
        )
    if config.training_data is not None:
        check_tokenizer(read_manifest(split_folder(config.training_data, "train")), WithoutSpecialTokens(codec))
    max_length = config.evaluation.max_length or model.config.context
    if max_length is None:
        raise ConfigError(
            f"evaluation.max_length: got null, expected tokens: {folder} does not say what it was trained on"
        )
    name = config.name or folder.resolve().name
    return EvaluatedModel(
        name=name,
        label=name,
        network=NativeNetwork(_at_strength(model.model, config.strength).to(device), dtype),
        codec=codec,
        max_length=max_length,
        trained=Trained(
            seed=facts.get("seed"), lr=facts.get("learning_rate"), steps=facts.get("steps"), tokens=facts.get("tokens")
        ),
        data=config.training_data,
        digest=digest,
    )


def _of_transformers(config: EvaluateConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> EvaluatedModel:
    from lm_eval.models.utils import resolve_max_length

    # First of all: a model of another kind may have a tokenizer of another kind too.
    class_of_a_folder(folder)
    with _unchanged(folder) as digest:
        tokenizer = tokenizer_of_a_folder(folder)
        model = model_of_a_folder(folder, device)
    codec = TransformersCodec(tokenizer, config.evaluation.prefix_token)
    if config.training_data is not None:
        check_tokenizer(read_manifest(split_folder(config.training_data, "train")), WithoutSpecialTokens(codec))
    name = config.name or folder.resolve().name
    return EvaluatedModel(
        name=name,
        label=name,
        network=TransformersNetwork(model, dtype),
        codec=codec,
        max_length=config.evaluation.max_length or resolve_max_length(model.config, tokenizer),
        trained=Trained(),
        data=config.training_data,
        digest=digest,
    )
