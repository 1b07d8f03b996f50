"""The Palimpsa attention operator. Needs torch, and triton on a GPU; see README.md in this folder."""

from .chunked import palimpsa_chunked
from .ops import palimpsa, palimpsa_step
from .reference import palimpsa_reference
from .types import PalimpsaOutput, PalimpsaState

__all__ = [
    "PalimpsaOutput",
    "PalimpsaState",
    "palimpsa",
    "palimpsa_chunked",
    "palimpsa_reference",
    "palimpsa_step",
]
