"""Every kernel of the repository: the Palimpsa operator in all its paths, and what its rivals and training run on.

The operator stands here; fla/ calls flash-linear-attention for the rivals, gpu/ holds all that needs Triton. Needs
torch, Triton on a GPU, and flash-linear-attention for fla/, each imported where it is used. It works by itself, as
`kernels`, and as `palimpsa.kernels`, which any room may import; it imports none of them. README.md maps the files.
"""

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
