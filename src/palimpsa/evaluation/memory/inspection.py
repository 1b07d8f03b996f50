"""All that inspection.json holds: what each head of a model kept of a sequence, and where the numbers are from."""

# B contexts, T tokens, H heads, n pairs

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.memory.attribution import HeadPath, follow_head
from palimpsa.evaluation.memory.head import MAX_COLUMNS, RECALLED, RULES, edges, head_details, head_summary, rounded
from palimpsa.evaluation.memory.source import Sequence, Source
from palimpsa.kernels import palimpsa
from palimpsa.kernels.fla.recurrences import gla, simple_gla
from palimpsa.mixers.layers import ShortConvolution
from palimpsa.mixers.linear_memory import LinearMemory
from palimpsa.model.language_model import Block, LanguageModel
from palimpsa.runs.provenance import provenance
from palimpsa.tasks.task import Bindings

FORMAT, VERSION = "palimpsa memory inspection", 1
# Heads with curves and maps, of those that were asked for.
MAX_DETAILED = 8
KNOWN = "PalimpsaD, PalimpsaM, SimpleGLA and GLA"


class Layers(NamedTuple):
    """memories: of each layer, for tokens [B, T]; logits [B, T, vocabulary]."""

    memories: list[LinearMemory]
    logits: Tensor


class Place(NamedTuple):
    """Of a head, from 0."""

    layer: int
    head: int


@torch.no_grad()
def inspect_memory(
    source: Source, sequence: Sequence, *, layer: int | None = None, head: int | None = None
) -> dict[str, Any]:
    """What a model's memory kept of a sequence.

    Args:
        layer, head: those that are shown whole; None: any.

    Raises:
        ConfigError: for a model without a memory of this kind, by the name of its mixer, or a layer or head that it
            does not have.
    """
    model = source.model
    check_places(model, layer, head)
    layers = read_layers(source, sequence.tokens[None])
    outputs = [operator_output(memory) for memory in layers.memories]
    bindings, places = sequence.bindings, list(_places(model))
    reads = {} if bindings is None else own_reads(source, bindings)
    heads: dict[Place, dict[str, Any]] = {}
    errors = []
    for place in places:
        memory = layers.memories[place.layer]
        path = follow_head(memory, place.head)
        errors.append(_attribution_error(path, outputs[place.layer][0, :, place.head]))
        summary = head_summary(path, memory.log_decay[0, :, place.head], _adds(memory))
        heads[place] = {**place._asdict(), **summary}
        if bindings is not None:
            own, offsets = reads[place]
            heads[place]["own_pair"] = {
                "share": rounded(own.double().mean().item()),
                "by_offset": [rounded((offsets == i).double().mean().item()) for i in range(_conv_width(model))],
                "shown": own[0].tolist(),
            }
    ranked = sorted(places, key=lambda place: _telling(heads[place]), reverse=True)
    asked = [one for one in ranked if layer in (None, one.layer) and head in (None, one.head)]
    for place in asked[:MAX_DETAILED]:
        memory = layers.memories[place.layer]
        path, log_decay = follow_head(memory, place.head), memory.log_decay[0, :, place.head]
        heads[place]["details"] = head_details(path, log_decay, _adds(memory))
    mixer = next(model.mixers())
    sizes = {"num_layers": len(layers.memories), "num_heads": mixer.num_heads}
    found = provenance("cpu")
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {
            **{"name": source.name, "label": source.label, "mixer": source.mixer, **sizes},
            "head_k_dim": layers.memories[0].k.shape[-1],
            "head_v_dim": layers.memories[0].v.shape[-1],
            "has_importance": _adds(layers.memories[0]),
            "training": source.facts,
        },
        "sequence": {
            **sequence.origin,
            "pieces": sequence.pieces,
            "edges": edges(len(sequence.tokens), MAX_COLUMNS),
        },
        "queries": None if bindings is None else _queries(model, bindings, layers.logits),
        "heads": [heads[place] for place in places],
        "shown": asked[0]._asdict(),
        "attribution_error": rounded(max(errors)),
        "recalled": RECALLED,
        "rules": RULES,
        "provenance": {
            **{key: found[key] for key in ("git_revision", "git_dirty", "versions", "device")},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
    }


def check_places(model: LanguageModel, layer: int | None, head: int | None) -> None:
    """Raises ConfigError, with the range, for a layer or a head that there is not."""
    mixers = list(model.mixers())
    for name, value, number in (("--layer", layer, len(mixers)), ("--head", head, mixers[0].num_heads)):
        if value is not None and not 0 <= value < number:
            raise ConfigError(f"{name}: got {value}, expected 0 to {number - 1}")


def _places(model: LanguageModel) -> Iterator[Place]:
    for layer, mixer in enumerate(model.mixers()):
        for head in range(mixer.num_heads):
            yield Place(layer, head)


def read_layers(source: Source, tokens: Tensor) -> Layers:
    """Has the model read tokens [B, T]. Raises ConfigError for one whose memory is of another kind."""
    model, residuals = source.model, []
    hidden = model.mix(model.embedding(tokens), residuals=residuals)
    memories = []
    for block, x in zip(model.blocks, residuals, strict=True):
        assert isinstance(block, Block)
        memory = block.mixer.linear_memory(block.mixer_norm(x))
        if memory is None:
            why = (
                "has no memory of a fixed size to look into"
                if block.mixer.state_size == 0
                else "takes off what it recalls when it writes: its entries do not decay each by itself"
            )
            raise ConfigError(
                f"CHECKPOINT: got a model of {type(block.mixer).__name__}, which {why}; expected one of {KNOWN}"
            )
        memories.append(memory)
    return Layers(memories, model.logits(hidden))


class OwnReads(NamedTuple):
    """is_own [B, n] bool: whether the token that brought most of a query's output is one that could store its pair;
    offset [B, n] int64: of that token from the pair's key, -1 where it is none of these."""

    is_own: Tensor
    offset: Tensor


def own_reads(source: Source, bindings: Bindings) -> dict[Place, OwnReads]:
    """Of each head, whether queries read the pairs that they ask for: see `_writers`."""
    found: dict[Place, list[Tensor]] = {place: [] for place in _places(source.model)}
    for row, tokens in enumerate(bindings.tokens):
        memories = read_layers(source, tokens[None]).memories
        queries = bindings.queries[row].tolist()
        for place, rows in found.items():
            rows.append(follow_head(memories[place.layer], place.head).shares(queries).argmax(1))
    writers = _writers(source.model, bindings)
    reads = {}
    for place, rows in found.items():
        largest = torch.stack(rows)
        is_own = writers.gather(2, largest[..., None])[..., 0]
        reads[place] = OwnReads(is_own, (largest - bindings.stored[..., 0]).masked_fill(~is_own, -1))
    return reads


def _conv_width(model: LanguageModel) -> int:
    return max((one.width for one in model.modules() if isinstance(one, ShortConvolution)), default=1)


def _writers(model: LanguageModel, bindings: Bindings) -> Tensor:
    """[B, n, T] bool: the tokens that can store a pair: those before its query that see both its key and its value.

    That is its value's, and those after it whose short convolution still reaches back to its key.
    """
    position = torch.arange(bindings.tokens.shape[1])
    key, value = bindings.stored.unbind(-1)
    last = torch.maximum(value, key + _conv_width(model) - 1)
    return (position >= value[..., None]) & (position <= last[..., None]) & (position < bindings.queries[..., None])


def _adds(memory: LinearMemory) -> bool:
    """Whether tokens add to an importance."""
    return memory.beta is not None


def _telling(head: dict[str, Any]) -> tuple[float, float]:
    """What orders heads: the more queries read their own pair, and the longer values are recalled, the first."""
    own = head.get("own_pair", {"share": 0})["share"]
    return own, -1 if head["recalled_age"] is None else head["recalled_age"]


def _attribution_error(path: HeadPath, expected: Tensor) -> float:
    """The largest difference of attributions added up from the operator's output [T, V], in parts of its largest."""
    added = torch.stack([path.output(t) for t in range(len(path.q))])
    return ((added - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def operator_output(memory: LinearMemory) -> Tensor:
    """o [B, T, H, V], by the operator that the mixer itself calls."""
    q, k, v, log_decay = memory[:4]
    if memory.importance_prior is not None:
        return palimpsa(q, k, v, memory.beta, log_decay, memory.importance_prior, scale=memory.scale).o
    return (gla if log_decay.ndim == 4 else simple_gla)(q, k, v, log_decay, None, None)[0]


def _queries(model: LanguageModel, bindings: Bindings, logits: Tensor) -> dict[str, Any]:
    """Of the context that is shown: positions, answers; and what reading by chance comes to."""
    positions = bindings.queries[0]
    writers = _writers(model, bindings)
    return {
        "stored": bindings.stored[0].tolist(),
        "positions": positions.tolist(),
        "labels": bindings.labels[0].tolist(),
        "answers": logits[0, positions].argmax(-1).tolist(),
        "last_writer": [int(row.nonzero().max()) for row in writers[0]],
        "num_contexts": len(bindings.tokens),
        # Of all tokens that were written so far, those that can have stored the pair.
        "chance": rounded((writers.sum(-1) / (bindings.queries + 1).double()).mean().item()),
    }
