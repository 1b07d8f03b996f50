"""The model card that lies beside the weights: what was trained, on what, for how long, with what loss."""

from __future__ import annotations

import json
from typing import Any

from palimpsa.config.text import markdown_text
from palimpsa.conversion.checkpoint import Checkpoint
from palimpsa.text.manifest import Manifest

UNKNOWN = "not known"
# Of training.json: what a conversion says of itself.
CONVERTED_FROM = "converted_from"

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [palimpsa, linear-attention]
---

# {label}

A language model of {parameters:,} parameters, {made} by the repository Palimpsa, which implements "Learning to
Remember, Learn, and Forget in Attention-Based Models" ([arXiv 2602.09075](https://arxiv.org/abs/2602.09075)).

| | |
|---|---|
{rows}

{tokenizer}

```python
import torch
import palimpsa.model.hf
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
```

It is a research artefact: nobody has looked for what it says that is wrong or harmful.
"""


def facts_of_run(checkpoint: Checkpoint, manifest: Manifest | None) -> dict[str, Any]:
    """What is known of a run, as training.json keeps it and the card tells it; None for what is not."""
    config, result = checkpoint.config, checkpoint.result
    task = {} if config is None else config["task"]
    stage = (result or {}).get("stages") or [{}]
    made_by = (result or {}).get("provenance") or {}
    tokens_per_step = task.get("tokens_per_step")
    return {
        "model_config": checkpoint.model_config,
        "steps": checkpoint.step,
        "tokens": None if tokens_per_step is None else checkpoint.step * tokens_per_step,
        "context": task.get("context"),
        "learning_rate": None if config is None else config["optimizer"]["lr"],
        "seed": None if config is None else config["seed"],
        "validation_loss": stage[-1].get("validation_loss"),
        "validation_perplexity_per_byte": stage[-1].get("validation_perplexity_per_byte"),
        "commit": made_by.get("git_revision"),
        "commit_was_edited": made_by.get("git_dirty"),
        "versions": made_by.get("versions"),
        "device": made_by.get("device"),
        "config_hash": (result or {}).get("config_hash"),
        "data": None if manifest is None else manifest.source,
        "data_licences": None if manifest is None else manifest.licences,
        "data_digest": task.get("train_digest"),
        "data_tokens": None if manifest is None else manifest.num_tokens,
    }


def model_card(label: str, num_parameters: int, facts: dict[str, Any], tokenizer: str) -> str:
    """README.md of a folder, in Markdown.

    Args:
        facts: from `facts_of_run`, or of a conversion, with `CONVERTED_FROM`.
        tokenizer: what became of it.
    """
    loss, per_byte, steps = (facts.get(name) for name in ("validation_loss", "validation_perplexity_per_byte", "steps"))
    edited = ", with changes that were not committed" if facts.get("commit_was_edited") else ""
    rows = {
        "data": _cell(facts.get("data")),
        "licences of the data": _cell(facts.get("data_licences")),
        "digest of the training tokens": _cell(facts.get("data_digest")),
        "optimiser steps": _number(steps),
        "tokens": _number(facts.get("tokens")),
        "context": _number(facts.get("context")),
        "peak learning rate, seed": f"{_cell(facts.get('learning_rate'))}, {_cell(facts.get('seed'))}",
        "validation loss, nats a token": UNKNOWN if loss is None else f"{loss:.4f}",
        "validation perplexity a byte": UNKNOWN if per_byte is None else f"{per_byte:.4f}",
        "commit": _cell(facts.get("commit")) + edited,
        "device": _cell(facts.get("device")),
    }
    converted = facts.get(CONVERTED_FROM)
    if converted is not None:
        # Of a model that others trained most is not known, and what there is was before the conversion.
        known = {f"{name}, of the source": text for name, text in rows.items() if UNKNOWN not in text}
        rows = {**{name.replace("_", " "): _cell(value) for name, value in converted.items()}, **known}
    return TEMPLATE.format(
        label=markdown_text(label),
        made="trained" if converted is None else "converted",
        parameters=num_parameters,
        rows="\n".join(f"| {name} | {text} |" for name, text in rows.items()),
        tokenizer=markdown_text(tokenizer[0].upper() + tokenizer[1:]) + ".",
    )


def _cell(value: Any) -> str:
    if value is None or value == {}:
        return UNKNOWN
    return markdown_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"
