"""What each plasticity of Palimpsa costs: the numbers of its state, the parameters of W_up, and time on an H200."""

# H heads, K key dim, V value dim, G precisions a head

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from palimpsa.analysis.collect.benchmark_columns import PASSES, ROWS_A_GROUP
from palimpsa.analysis.collect.benchmark_files import read_operator_csv
from palimpsa.analysis.tables import count_text, markdown_table, with_device_time
from palimpsa.config.compose import compose_config

# The letters of a label are the block's.
EXAMPLES = {"D 170M": "lm/palimpsa_d_170m", "M 170M": "lm/palimpsa_m_170m"}
# The benchmark's shape of that size.
DEVICE, SHAPE = "nvidia-h200", "170m"


class _Row(NamedTuple):
    """name and state a head, in words; G of V; whether there is a W_up; the operator of the benchmark."""

    name: str
    state: str
    num_precisions: Callable[[int], int]
    has_up: bool
    operator: str


_ROWS = (
    _Row("vector, as published", "2 K V", lambda V: V, True, "palimpsa"),
    _Row(f"grouped, G = V / {ROWS_A_GROUP}", "K V + K G", lambda V: V // ROWS_A_GROUP, True, "palimpsa_grouped"),
    _Row("scalar, G = 1", "K V + K", lambda V: 1, True, "palimpsa_scalar"),
    _Row("constant", "2 K V", lambda V: V, False, "palimpsa"),
    _Row("without metaplasticity", "K V", lambda V: 0, False, "palimpsa_without_metaplasticity"),
)


def plasticity_costs(results: Path) -> str:
    """A row a plasticity: state a head; state and parameters of W_up in a layer of each of EXAMPLES; time.

    The time is of the operator, forward and with the backward, where results/kernels has it; in brackets that of the
    GPU alone.
    """
    configs = {label: compose_config([f"model={model}"]).model for label, model in EXAMPLES.items()}
    columns = [f"{what}, {label}" for what in ("state", "W_up") for label in configs]
    header = ["plasticity", "state a head", *columns, "forward, ms (of the GPU alone)", "with backward"]
    measured = read_operator_csv(results / "kernels", "operators", DEVICE)
    measured = measured.loc[(measured["case"] == "table") & (measured["shape"] == SHAPE)].set_index("operator")
    cells = []
    for row in _ROWS:
        states, parameters = [], []
        for config in configs.values():
            H, K, V = config.mixer.num_heads, config.mixer.head_k_dim, config.mixer.head_v_dim
            G = row.num_precisions(V)
            states.append(count_text(H * K * (V + G)))
            parameters.append(count_text(config.d_model // 16 * H * G if row.has_up else 0))
        times = ["not measured"] * 2
        if row.operator in measured.index:
            own = measured.loc[row.operator]
            times = [with_device_time(own[f"{name}_ms"], own[f"{name}_device_ms"], ".3g") for name in PASSES]
        cells.append([row.name, row.state, *states, *parameters, *times])
    return "\n".join(markdown_table(header, cells))
