"""A model without metaplasticity as one with it: its weights, and new ones for precisions, at first very small."""

# B batch, T time, G precisions a head

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import is_file_name
from palimpsa.config.schema import MAX_SEED
from palimpsa.conversion.card import CONVERTED_FROM, model_card
from palimpsa.conversion.folder import write_folder
from palimpsa.conversion.initial_scales import LogitsCheck, choose_strength, set_initial_scales
from palimpsa.conversion.source import Source, read_source
from palimpsa.mixers import PalimpsaD, PalimpsaM
from palimpsa.mixers.parameters import MASTER_DTYPE
from palimpsa.mixers.plasticity import Plasticity
from palimpsa.model.build import skeleton_keys
from palimpsa.model.finite import check_finite
from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM
from palimpsa.model.language_model import Block, LanguageModel

FORMS = ("vector", "grouped", "scalar")
# The form of a model that stays without precisions, in this repository's layout: the control of a conversion.
NO_PRECISIONS = "none"
# Of the new model's name, after the source's.
SUFFIX = "_metaplastic"


@dataclass(frozen=True)
class Conversion:
    """What is asked for.

    Args:
        form: of `FORMS`: a precision a row of the memory, one for each of several rows, or one a head; or "none".
        num_precisions: a head, of "grouped" alone.
        strength: in (0, 1]: see `initial_scales`; None: see `choose_strength`.
        seed: of the new matrices.
        name, label: of the new model; None: the source's with an end that says what became of it.
        tokenizer: where the source's is, if not beside it.
        num_norm_groups: of a Mamba-2's output norm, if not as Mamba-2 has it.
    """

    form: str = "vector"
    num_precisions: int | None = None
    strength: float | None = None
    seed: int = 0
    name: str | None = None
    label: str | None = None
    tokenizer: str | None = None
    num_norm_groups: int | None = None


def convert_metaplastic(path: Path, folder: Path, conversion: Conversion) -> list[str]:
    """Writes the metaplastic form of a model as a folder that `AutoModelForCausalLM` loads.

    Args:
        path: of the source: see `read_source`.
        folder: must not be there.

    Returns:
        lines of a report: every tensor, copied, created or dropped, and what it comes to.

    Raises:
        ConfigError, RunDirectoryError: in one line: see `read_source`; for a folder that is there, or a conversion that
            the source does not take.
        OSError: where it cannot be written.
    """
    if os.path.lexists(folder):
        raise ConfigError(f"{folder}: is there already, expected a new folder")
    if conversion.strength is not None and not 0 < conversion.strength <= 1:
        raise ConfigError(
            f"--strength: got {conversion.strength}, expected above 0 and at most 1: softplus(s) is never 0; a mixer's "
            "strength of 0 makes a converted model its source again"
        )
    if not 0 <= conversion.seed <= MAX_SEED:
        raise ConfigError(f"--seed: got {conversion.seed}, expected 0 to {MAX_SEED}")
    source = read_source(path, tokenizer=conversion.tokenizer, num_norm_groups=conversion.num_norm_groups)
    model_config = metaplastic_config(source.model_config, conversion)
    config = PalimpsaConfig.of_model(model_config, context=source.facts.get("context"), **source.token_ids)
    model = PalimpsaForCausalLM(config).eval()
    created = _fill(model.model, source, conversion)
    become: dict[str, Any] = {"precisions": conversion.form}
    said = []
    if conversion.form != NO_PRECISIONS:
        strength, line = _start_small(model.model, path, conversion.strength)
        become |= {
            "precisions_a_head": next(model.model.mixers()).state_shapes()[1][2],
            "strength_at_conversion": strength,
            "seed_of_the_new_matrices": conversion.seed,
        }
        said.append(line)
    facts = {
        **source.facts,
        # Of another model.
        "validation_loss": None,
        "validation_perplexity_per_byte": None,
        "model_config": model_config,
        CONVERTED_FROM: {
            "converted_from": path.resolve().name,
            "kind_of_the_source": source.kind,
            **become,
        },
    }
    told = write_folder(
        model,
        folder,
        facts,
        lambda told: model_card(config.label, model.model.num_parameters, facts, told),
        source.write_tokenizer,
    )
    return [
        *_tensors(model.model, source, created),
        *source.notes,
        told,
        *_costs(model.model, created),
        *said,
        str(folder),
    ]


def _start_small(model: LanguageModel, path: Path, given: float | None) -> tuple[float, str]:
    """Gives the precisions the strength that they begin with; returns it, and what it does to the logits."""
    try:
        check = LogitsCheck(model)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    strength = choose_strength(model, check) if given is None else given
    set_initial_scales(model, strength)
    told = f"logits on {check.num_tokens} random tokens within {check.difference():.1e} of the source's"
    return strength, f"strength: {strength:g}; {told}"


def metaplastic_config(source: dict[str, Any], conversion: Conversion) -> dict[str, Any]:
    """The keys of `configs/model` of the metaplastic form of a model.

    Raises:
        ConfigError: for another form, a num_precisions that does not go with it, or a name that is none of a file.
    """
    is_plain = conversion.form == NO_PRECISIONS
    if not is_plain and conversion.form not in FORMS:
        raise ConfigError(f"--form: got {conversion.form!r}, expected one of {', '.join((*FORMS, NO_PRECISIONS))}")
    if is_plain and conversion.strength is not None:
        raise ConfigError(
            f"--strength: got {conversion.strength} with --form none, expected none: there is none to start"
        )
    width, G = source["mixer"]["head_v_dim"], conversion.num_precisions
    if conversion.form != "grouped" and G is not None:
        raise ConfigError(f"--num-precisions: got {G} with --form {conversion.form}, expected it with grouped alone")
    if conversion.form == "grouped" and (G is None or G < 1 or width % G):
        raise ConfigError(
            f"--num-precisions: got {'none' if G is None else G} with --form grouped, expected a divisor of the "
            f"{width} rows of a head's memory"
        )
    name = conversion.name or (source["name"] if is_plain else f"{source['name']}{SUFFIX}")
    if not is_file_name(name):
        raise ConfigError(f"--name: got {name!r}, expected letters, digits, '_', '-', '+' and '.'")
    becomes = {} if is_plain else {"metaplastic": True, "plasticity": conversion.form, "num_precisions": G}
    mixer = {**source["mixer"], **becomes}
    return {
        "name": name,
        "label": conversion.label or (source["label"] if is_plain else f"{source['label']}, metaplastic"),
        **skeleton_keys(source),
        "mixer": mixer,
    }


@torch.no_grad()
def _fill(model: LanguageModel, source: Source, conversion: Conversion) -> list[str]:
    """Gives a new model its weights; returns the names of those that the source does not have."""
    check_finite(source.weights, source.path)
    own = model.state_dict()
    created = [name for name in own if name not in source.weights]
    wrong = [name for name in created if not (".plasticity." in name or name.endswith("importance_prior"))]
    wrong += sorted(source.weights.keys() - own.keys())
    wrong += [name for name in own.keys() & source.weights.keys() if own[name].shape != source.weights[name].shape]
    if wrong:
        raise ConfigError(
            f"{source.path}: got {wrong[0]} missing, unknown or of another shape, and {len(wrong) - 1} more, expected "
            "the weights of its config"
        )
    model.load_state_dict({name: weight.to(MASTER_DTYPE) for name, weight in source.weights.items()}, strict=False)
    if conversion.form == NO_PRECISIONS:
        return created
    generator = torch.Generator().manual_seed(conversion.seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        mixer = block.mixer
        assert isinstance(mixer, PalimpsaD | PalimpsaM)
        assert isinstance(mixer.plasticity, Plasticity)
        for matrix in (mixer.plasticity.down, mixer.plasticity.up):
            matrix.weight.normal_(0.0, mixer.d_model**-0.5, generator=generator)
    return created


def _tensors(model: LanguageModel, source: Source, created: list[str]) -> list[str]:
    """A line a tensor, and how many there are."""
    lines = []
    for name, weight in model.state_dict().items():
        how = "created" if name in created else f"copied  {source.origins[name]} ->"
        lines.append(f"{how} model.{name}  {str(weight.dtype).removeprefix('torch.')}  {list(weight.shape)}")
    lines += [f"dropped {name}: {why}" for name, why in source.dropped.items()]
    num_created = len(created)
    return [
        *lines,
        f"{len(model.state_dict()) - num_created} tensors copied, {num_created} created, {len(source.dropped)} dropped",
    ]


def _costs(model: LanguageModel, created: list[str]) -> list[str]:
    trained = dict(model.named_parameters())
    more = sum(trained[name].numel() for name in created if name in trained)
    mixer = next(model.mixers())
    mean = mixer.num_heads * mixer.head_k_dim * mixer.head_v_dim
    return [
        f"parameters: {model.num_parameters:,}, of which {more:,} are new",
        f"state of a sequence in a layer: {mixer.state_size:,} numbers, where it was {mean:,}",
    ]
