"""What each way of selecting says of Palimpsa and its twins, by protocol: the table of docs/results.md."""

import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from palimpsa.analysis.statistics.learning_rate import one_experiment
from palimpsa.analysis.statistics.selection import READINGS, Gap, selected_gaps
from palimpsa.analysis.tables import count_text, markdown_table
from palimpsa.runs.read import read_runs_csv
from palimpsa.runs.schema import FINISHED

SCALE = "h200"


class Protocol(NamedTuple):
    """Rows of the table: of which task, what it is called, its folder of results, and what runs it.

    models: those of the experiment, which `num_runs` counts when it is finished; None: not counted. More models of its
    task have rows too.
    """

    task: str
    label: str
    folder: str
    experiment: str
    models: tuple[str, ...] = ()
    num_runs: int | None = None


D_AND_TWIN = ("palimpsa_d", "palimpsa_d_nometa")
M_AND_TWIN = ("palimpsa_m", "mamba2")
FORCED = "curriculum, A and d's bias decay by"
FOUR = (*D_AND_TWIN, "palimpsa_d_scalar", "gated_deltanet")

PROTOCOLS = (
    Protocol("mqar_curriculum", "curriculum", "mqar", "figure2_grid"),
    Protocol("mqar_long", "curriculum, four times the steps", "mqar", "mqar_long"),
    Protocol("mqar_forced", f"{FORCED} 0.1", "recipe", "recipe_f", (*FOUR, *M_AND_TWIN), 24),
    Protocol("mqar_forced_weak", f"{FORCED} 0.01", "recipe", "recipe_f_weak", D_AND_TWIN, 8),
    Protocol("mqar_forced_strong", f"{FORCED} 0.3", "recipe", "recipe_f_strong", D_AND_TWIN, 8),
    Protocol("mqar_bf16", "curriculum, all in bf16", "recipe", "recipe_e", D_AND_TWIN, 8),
    Protocol("mqar_kept", "curriculum, again", "recipe", "recipe_beyond", FOUR, 16),
    Protocol("mqar_scratch", "scratch, 60 epochs", "mqar", "mqar_scratch"),
    Protocol("mqar_scratch_1024", "scratch, 20 epochs", "recipe", "recipe_d", D_AND_TWIN, 8),
    Protocol("mqar_authors", "scratch by their recipe, 20 epochs", "recipe", "recipe_a", D_AND_TWIN, 20),
    Protocol("mqar_authors", "scratch by their recipe, 20 epochs", "recipe", "recipe_c", M_AND_TWIN, 8),
    Protocol("mqar_authors_long", "scratch by their recipe, 60 epochs", "recipe", "recipe_a_long", D_AND_TWIN, 6),
    Protocol(
        "mqar_authors_very_small",
        "scratch by their recipe, very small forgetting, 20 epochs",
        *("recipe", "recipe_b", D_AND_TWIN, 8),
    ),
    Protocol("mqar_authors_1024", "scratch by their recipe, 20 epochs", "recipe", "recipe_d_authors", D_AND_TWIN, 4),
    Protocol("mqar_interference", "curriculum with interference", "recipe", "recipe_interference", FOUR, 8),
)
# Of a curriculum the lengths below are solved by all.
SHORTEST = 512
PAIRS = (
    ("palimpsa_d", "palimpsa_d_nometa"),
    ("palimpsa_d_scalar", "palimpsa_d_nometa"),
    ("palimpsa_m", "mamba2"),
)


def selection_table(results: Path) -> str:
    """A row a protocol, length and pair of twins that has runs: the gap under each reading, in points."""
    cells, missing, unfinished = [], [], []
    for protocol in PROTOCOLS:
        rows = _rows_of(results / protocol.folder / "runs.csv", protocol)
        own = None if rows is None else rows.loc[rows["model"].isin(list(protocol.models or rows["model"]))]
        if rows is None or own is None or own.empty:
            missing.append(f"`{protocol.experiment}`")
        else:
            runs = own.drop_duplicates(["model", "lr", "seed"])
            num_runs = int((runs["status"] == FINISHED).sum())
            # Of which those that diverged are not tried again.
            failed = f", {len(runs) - num_runs} failed" if len(runs) > num_runs else ""
            if protocol.num_runs is not None and num_runs < protocol.num_runs:
                unfinished.append(f"`{protocol.experiment}` ({num_runs} of {protocol.num_runs}{failed})")
        if rows is None:
            continue
        for model, twin in PAIRS:
            labels = dict(zip(rows["model"], rows["label"], strict=True))
            if not {model, twin} <= labels.keys():
                continue
            for (seq_len, _), gaps in selected_gaps(rows, model, twin).items():
                if seq_len >= SHORTEST and gaps:
                    seeds = next(iter(gaps.values())).num_seeds
                    name = f"{protocol.label}, L {count_text(seq_len)}"
                    texts = [_gap_text(gaps.get(reading)) for reading in READINGS]
                    cells.append([name, f"{labels[model]} minus {labels[twin]}", _seeds_text(seeds), *texts])
    lines = markdown_table(["protocol", "difference", "seeds", *READINGS], cells)
    caption = (
        "Points of test accuracy, with 95% intervals of unpaired seeds (Welch's). The second and third readings select "
        "on the number that they report."
    )
    if unfinished:
        caption += f" Only some of their runs: {', '.join(unfinished)}."
    if missing:
        caption += f" Not run yet, each an experiment of `scripts/train.py`: {', '.join(missing)}."
    return "\n".join([*lines, "", textwrap.fill(caption, 118, break_on_hyphens=False)])


def _rows_of(path: Path, protocol: Protocol) -> pd.DataFrame | None:
    """A protocol's runs at SCALE, without those of another one of the same task; None where there are none yet."""
    if not path.exists():
        return None
    runs = read_runs_csv(path)
    others = [other for other in PROTOCOLS if other.task == protocol.task and other.experiment != protocol.experiment]
    runs = runs.loc[~runs["model"].isin([model for other in others for model in other.models])]
    known = set(runs[["task", "scale"]].itertuples(index=False, name=None))
    return one_experiment(runs, protocol.task, SCALE) if (protocol.task, SCALE) in known else None


def _gap_text(gap: Gap | None) -> str:
    """
    >>> _gap_text(Gap(0.012, 0.05, (8, 8))), _gap_text(None)
    ('1.2 ± 5.0', '-')
    """
    if gap is None:
        return "-"
    # No minus before a zero.
    points = f"{round(100 * gap.mean, 1) + 0.0:.1f}"
    return points if np.isnan(gap.margin) else f"{points} ± {100 * gap.margin:.1f}"


def _seeds_text(num_seeds: tuple[int, int]) -> str:
    one, other = num_seeds
    return str(one) if one == other else f"{one}, {other}"
