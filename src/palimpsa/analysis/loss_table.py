"""What a sweep over learning rates ends with where runs are measured by a loss: a table of every rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsa.analysis.statistics.validation_loss import best_rate, losses_by_rate
from palimpsa.analysis.titles import subtitle, title

_EXPLANATION = (
    "seeds: finished/all. loss: on validation data, nats a token, mean over the seeds that all rates of a model have; "
    "a run that did not finish has none."
)


def print_losses(results: Iterable[Mapping[str, Any]], console: Console) -> bool:
    """Prints the learning rates of results of one task and scale; returns whether any model has two of them."""
    results = list(results)
    by_model = losses_by_rate(results)
    if all(len(rates) < 2 for rates in by_model.values()):
        return False
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("lr", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    notes = []
    for label, rates in by_model.items():
        best = best_rate(rates)
        table.add_row(Text(label))
        for rate in rates:
            loss = f"{rate.loss:.4f}" if math.isfinite(rate.loss) else "-"
            name, style = (f"{rate.lr:g} best", "bold") if rate is best else (f"{rate.lr:g}", None)
            table.add_row(f"  {name}", f"{rate.num_finished}/{rate.num_runs}", loss, style=style)
        if len(rates) > 1 and best in (rates[0], rates[-1]):
            notes.append(f"{label}: best at the edge of the rates tried, one beyond may be better")
    run = results[0]["run"]
    console.print(Text(f"\nLearning rates: {title(run['task'])}\n{subtitle(run['scale'])}\n"))
    console.print(table)
    console.print(f"\n{_EXPLANATION}")
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    return True
