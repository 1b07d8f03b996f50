"""The two result types of the operator."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, a divisor of V
from typing import NamedTuple

from torch import Tensor


class PalimpsaState(NamedTuple):
    """The memory after some number of tokens: a diagonal Gaussian for every entry of a K x V matrix.

    Attributes:
        mean: [B, H, K, V], the posterior mean mu of Eq. 26. Float32 (float64 for float64 inputs).
        importance: [B, H, K, G], the posterior precision I of Eq. 25, > 0. Same dtype. Number j is that of the rows
            j V / G up to (j + 1) V / G; G = V, one for every row, is the published form, G = 1 has one a head.
    """

    mean: Tensor
    importance: Tensor


class PalimpsaOutput(NamedTuple):
    """What the operator returns. Fields that were not asked for are None.

    Attributes:
        o: [B, T, H, V] ([B, H, V] from `palimpsa_step`), the recalled value, in v's dtype.
        variance: like `o`, its epistemic variance.
        final_state: the memory after the last token.
    """

    o: Tensor
    variance: Tensor | None
    final_state: PalimpsaState | None
