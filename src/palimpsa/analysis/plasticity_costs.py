"""What each plasticity of Palimpsa costs: the numbers of its state, and the parameters of W_up."""

# H heads, K key dim, V value dim, G precisions a head

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from palimpsa.analysis.tables import count_text, markdown_table
from palimpsa.config.compose import compose_config

# The letters of a label are the block's.
EXAMPLES = {"D 170M": "lm/palimpsa_d_170m", "M 170M": "lm/palimpsa_m_170m"}
# Of a grouped plasticity: the smallest groups that a GPU takes by matrix products.
ROWS_A_GROUP = 16


class _Row(NamedTuple):
    """name and state a head, in words; G of V; whether there is a W_up."""

    name: str
    state: str
    num_precisions: Callable[[int], int]
    has_up: bool


_ROWS = (
    _Row("vector, as published", "2 K V", lambda V: V, True),
    _Row(f"grouped, G = V / {ROWS_A_GROUP}", "K V + K G", lambda V: V // ROWS_A_GROUP, True),
    _Row("scalar, G = 1", "K V + K", lambda V: 1, True),
    _Row("constant", "2 K V", lambda V: V, False),
    _Row("without metaplasticity", "K V", lambda V: 0, False),
)


def plasticity_costs(_: Path) -> str:
    """A row a plasticity: state a head; state and parameters of W_up in a layer of each of EXAMPLES."""
    configs = {label: compose_config([f"model={model}"]).model for label, model in EXAMPLES.items()}
    header = ["plasticity", "state a head", *(f"{what}, {label}" for what in ("state", "W_up") for label in configs)]
    cells = []
    for row in _ROWS:
        states, parameters = [], []
        for config in configs.values():
            H, K, V = config.mixer.num_heads, config.mixer.head_k_dim, config.mixer.head_v_dim
            G = row.num_precisions(V)
            states.append(count_text(H * K * (V + G)))
            parameters.append(count_text(config.d_model // 16 * H * G if row.has_up else 0))
        cells.append([row.name, row.state, *states, *parameters])
    return "\n".join(markdown_table(header, cells))
