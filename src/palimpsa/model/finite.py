"""Whether a model's weights are numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from palimpsa.config.errors import ConfigError


def check_finite(weights: Mapping[str, Tensor], place: object) -> None:
    """Refuses weights that hold NaN or an infinity: of such a model every word is a guess, and nothing trains from it.

    Args:
        weights: by name.
        place: where they come from, for the error.

    Raises:
        ConfigError: naming the first of them, and how many of its numbers are none.
    """
    wrong = {name: number for name, x in weights.items() if (number := int((~x.isfinite()).sum()))}
    if wrong:
        name, number = next(iter(wrong.items()))
        others = f", and {len(wrong) - 1} more weights hold some" if len(wrong) > 1 else ""
        raise ConfigError(
            f"{place}: got {name} with {number:,} of its {weights[name].numel():,} numbers NaN or infinite{others}, "
            "expected finite weights: has its training diverged?"
        )
