"""How models look in every figure: one colour a model, safe for colour-blind readers."""

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple


class ModelStyle(NamedTuple):
    """colour (bars and lines), hatch of the bars, dash pattern of the lines."""

    color: str
    hatch: str
    linestyle: Any


# Okabe and Ito's palette. A control without metaplasticity has its model's family of colour,
# hatched and dashed, so that the pair can be told apart without colour too. A model with one
# precision a head is its model's blue or red so dark that no deficiency makes it another's.
_ONE_PRECISION = ("---", (0, (12, 3)))
MODEL_STYLES = {
    "palimpsa_d": ModelStyle("#0072B2", "", "-"),
    "palimpsa_d_scalar": ModelStyle("#001F3F", *_ONE_PRECISION),
    "palimpsa_d_nometa": ModelStyle("#56B4E9", "///", "--"),
    "palimpsa_m": ModelStyle("#D55E00", "", "-"),
    "palimpsa_m_scalar": ModelStyle("#5C2A00", *_ONE_PRECISION),
    "mamba2": ModelStyle("#E69F00", "///", "--"),
    "gla": ModelStyle("#009E73", "...", "-."),
    "gated_deltanet": ModelStyle("#CC79A7", "", "-."),
    "transformer": ModelStyle("#8C8C8C", "", ":"),
}

# For models and variants that are not listed: Tol's "muted" palette.
_OTHERS = [
    ModelStyle("#332288", "xxx", (0, (5, 1, 1, 1, 1, 1))),
    ModelStyle("#882255", "\\\\\\", (0, (3, 1, 1, 1))),
    ModelStyle("#DDCC77", "ooo", (0, (1, 1))),
    ModelStyle("#44AA99", "+++", (0, (8, 2))),
    ModelStyle("#AA4499", "***", (0, (4, 1, 1, 1, 1, 1))),
    ModelStyle("#CC6677", "|||", (0, (2, 2))),
]


def model_order(models: Iterable[str]) -> list[str]:
    """The order of models in figures and tables: as listed above, a variant after its model."""
    known = list(MODEL_STYLES)

    def rank(model: str) -> tuple[int, int, str]:
        bases = [name for name in known if model == name or model.startswith(f"{name}_")]
        base = max(bases, key=len, default="")
        return (known.index(base) if base else len(known), int(model != base), model)

    return sorted(set(models), key=rank)


def model_styles(models: Iterable[str]) -> dict[str, ModelStyle]:
    """A style for every model, the same whichever others there are, as far as the palette goes.

    A model that is not listed takes its colour by a checksum of its name, or the next free one.
    """
    styles = {}
    taken: set[int] = set()
    for model in sorted(set(models)):
        if model in MODEL_STYLES:
            styles[model] = MODEL_STYLES[model]
            continue
        place = zlib.crc32(model.encode()) % len(_OTHERS)
        while place in taken and len(taken) < len(_OTHERS):
            place = (place + 1) % len(_OTHERS)
        taken.add(place)
        styles[model] = _OTHERS[place]
    return styles


def family_styles(names: Iterable[str]) -> dict[str, ModelStyle]:
    """Styles of names that begin with a model's, a run's say: the model's own, where no two names share it.

    >>> family_styles(["gla_44m_seed_1", "mamba2"])["gla_44m_seed_1"] == MODEL_STYLES["gla"]
    True
    """
    styles, families = model_styles(names), {}
    for name in styles:
        bases = [model for model in MODEL_STYLES if name == model or name.startswith(f"{model}_")]
        families[name] = max(bases, key=len, default=name)
    shared = [base for base in families.values() if list(families.values()).count(base) > 1]
    return {
        name: MODEL_STYLES[base] if base in MODEL_STYLES and base not in shared else styles[name]
        for name, base in families.items()
    }
