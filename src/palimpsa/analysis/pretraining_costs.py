"""What the paper's runs of pretraining cost in GPU hours, from the tokens a second that the benchmark has measured."""

from pathlib import Path
from typing import Any

from palimpsa.analysis.collect.benchmark_files import read_pretraining_csv
from palimpsa.analysis.style import model_order
from palimpsa.analysis.tables import markdown_table
from palimpsa.config.compose import compose_config
from palimpsa.config.text import markdown_text

DEVICE = "nvidia-h200"
# Of configs/experiment; each has the models whose names end like its own.
EXPERIMENTS = ("commonsense_170m", "commonsense_760m")


def gpu_hours(num_tokens: float, tokens_per_s: float) -> float:
    """Hours of one GPU, or of several together where communication costs nothing.

    >>> gpu_hours(3_600_000, 1_000)
    1.0
    """
    return num_tokens / tokens_per_s / 3600


def pretraining_costs(results: Path) -> str:
    """A row a model of the experiments, at its fastest: tokens a second, share of the peak, memory, GPU hours.

    Models of other sizes, which no experiment has a number of tokens for, come last and without hours. An experiment
    of whose own model nothing was measured says so.
    """
    rows = read_pretraining_csv(results / "training", DEVICE).sort_values("tokens_per_s").to_dict("records")
    # Of several of a model the last one stays. `lm/` is left out, as it is of the models' own names.
    fastest = {row["model"].rpartition("/")[2]: row for row in rows}
    measured = {model: fastest[model] for model in model_order(fastest)}
    cells = []
    for name in EXPERIMENTS:
        config = compose_config([f"+experiment={name}"])
        num_tokens, size = config.task.num_tokens, name.rpartition("_")[2]
        if config.model.name not in measured:
            cells.append([config.model.label, _billions(num_tokens), *["not measured"] * 5])
        for model in [one for one in measured if one.endswith(f"_{size}")]:
            cells.append(_cells(measured.pop(model), num_tokens))
    cells += [_cells(row, None) for row in measured.values()]
    header = ["model", "billion tokens", "step, parts", "tokens/s", "of the peak", "GiB", "GPU hours"]
    return "\n".join(markdown_table(header, cells))


def _billions(num_tokens: int) -> str:
    return f"{num_tokens / 1e9:g}"


def _cells(row: dict[Any, Any], num_tokens: int | None) -> list[str]:
    hours = "-" if num_tokens is None else f"{gpu_hours(num_tokens, row['tokens_per_s']):,.0f}"
    again = ", blocks again" if row["checkpoint_blocks"] else ""
    return [
        markdown_text(row["label"]),
        "-" if num_tokens is None else _billions(num_tokens),
        f"{row['tokens_per_step']:,.0f}, {row['accumulate']:.0f}{again}",
        f"{row['tokens_per_s']:,.0f}",
        f"{row['mfu']:.1%}",
        f"{row['peak_memory_gib']:.1f}",
        hours,
    ]
