"""Which parts of a model torch.compile compiles, and when that code runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from palimpsa.model.language_model import LanguageModel

# A version of a block for every model, length, and with or without gradients; beyond this dynamo gives up.
MAX_VERSIONS = 512


def compile_blocks(model: LanguageModel) -> None:
    """Compiles the model's blocks and its last norm with torch.compile: fewer passes over memory, other rounding.

    One block at a time: layers share what is compiled, and the embedding stays out, whose compiled gradient adds in an
    order that differs between runs.
    """
    from torch._inductor import config as inductor

    torch._dynamo.config.recompile_limit = MAX_VERSIONS
    # Reductions that are chosen by timing them add in an order that may differ between two runs.
    inductor.deterministic = True
    # Otherwise it would go on uncompiled, and say nothing.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in model.blocks:
        block.compile(dynamic=False)
    # A module of PyTorch's own would not be compiled: its code is on dynamo's list of what to leave alone.
    model.normalise = torch.compile(model.normalise, dynamic=False)


def compiled_code_if(is_whole_batch: bool) -> AbstractContextManager[Any]:
    """Compiled code for batches of a stage's size only: an epoch's last, smaller one is not worth compiling for."""
    return nullcontext() if is_whole_batch else torch.compiler.set_stance("force_eager")
