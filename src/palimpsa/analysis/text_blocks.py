"""The tables and sentences of README.md and docs/ that come from CSV files: what stands between each pair of markers.

`TEXT_BLOCKS` has them by the name in the marker. Each is a function of the results folder (with mqar/, kernels/,
training/, commonsense/, finetuning/, recipe/, calibration/) that returns Markdown, and raises ResultError for a file
that is missing, invalid, or lacks what it needs.
"""

import textwrap
from collections.abc import Callable
from itertools import product, starmap
from pathlib import Path

import numpy as np
import pandas as pd

from palimpsa.analysis.calibration.tables import calibration_summary
from palimpsa.analysis.collect.benchmark_columns import BASELINE, OPERATORS, PASSES
from palimpsa.analysis.collect.benchmark_files import read_operator_csv, read_training_csv
from palimpsa.analysis.finetuning.controls import controls_text
from palimpsa.analysis.finetuning.tables import finetuning_summary
from palimpsa.analysis.language.evaluation_tables import zero_shot_summary
from palimpsa.analysis.language.speed_table import evaluation_speed_table
from palimpsa.analysis.plasticity_costs import plasticity_costs
from palimpsa.analysis.pretraining_costs import pretraining_costs
from palimpsa.analysis.recipe.lengths_table import beyond_table, interference_table
from palimpsa.analysis.recipe.selection_table import selection_table
from palimpsa.analysis.statistics.learning_rate import (
    at_chosen_rates,
    choose_learning_rates,
    finished_stages,
    one_experiment,
)
from palimpsa.analysis.statistics.summary import mean_difference
from palimpsa.analysis.style import model_order
from palimpsa.analysis.tables import markdown_table, mean_and_std, percent, state_text, with_device_time
from palimpsa.config.text import markdown_text
from palimpsa.runs.read import read_runs_csv
from palimpsa.runs.schema import ResultError

SCALE = "h200"
DEVICE = "nvidia-h200"
# Each with its twin without metaplasticity.
TWINS = {
    "palimpsa_d": "palimpsa_d_nometa",
    "palimpsa_d_scalar": "palimpsa_d_nometa",
    "palimpsa_m": "mamba2",
    "palimpsa_m_scalar": "mamba2",
}


def figure2_h200_table(results: Path) -> str:
    """A row a model of Figure 2: state, learning rate, seeds, mean ± standard deviation at each length."""
    _, tested = _experiment(results, "mqar_curriculum")
    lengths = _lengths(tested)
    cells = []
    for model in model_order(tested["model"]):
        own = tested.loc[tested["model"] == model]
        state, seeds = state_text(own["state_size"].iloc[0]), str(own["seed"].nunique())
        accuracies = [_mean_and_std(_accuracies(own, length)) for length in lengths]
        cells.append([own["label"].iloc[0], state, _rate_text(own), seeds, *accuracies])
    return _table(["model", "state", "rate", "seeds", *map(_length_text, lengths)], cells)


def figure2_gaps(results: Path) -> str:
    """Palimpsa's mean minus its twin's at the two greatest lengths: at the chosen rates, at each, and over all.

    A row for each pair of `TWINS` that has runs.
    """
    tested, at_chosen = _experiment(results, "mqar_curriculum")
    labels = dict(zip(tested["model"], tested["label"], strict=True))
    pairs_of_twins = [twins for twins in TWINS.items() if set(twins) <= set(labels)]
    rates = sorted(tested.loc[tested["model"].isin(dict(pairs_of_twins)), "lr"].unique())
    longest, num_pairs = _lengths(tested)[-1], len(pairs_of_twins) * len(rates)
    cells, num_ahead = [], 0
    for length, twins in product(_lengths(tested)[-2:], pairs_of_twins):
        ours, theirs = (tested.loc[(tested["model"] == model) & (tested["seq_len"] == length)] for model in twins)
        same_rate = [[_accuracies(rows.loc[rows["lr"] == lr], length) for rows in (ours, theirs)] for lr in rates]
        pairs = [
            [_accuracies(at_chosen.loc[at_chosen["model"] == model], length) for model in twins],
            *same_rate,
            [rows.groupby("seed")["test_accuracy"].mean().to_numpy(dtype=float) for rows in (ours, theirs)],
        ]
        differences = [f"{100 * mean:.1f} ({100 * error:.1f})" for mean, error in starmap(mean_difference, pairs)]
        cells.append([f"{labels[twins[0]]} minus {labels[twins[1]]}, {_length_text(length)}", *differences])
        if length == longest:
            num_ahead += sum(bool(own.mean() > other.mean()) for own, other in same_rate)
    caption = (
        "Differences of mean test accuracies in points, their standard errors in brackets. At "
        f"{_length_text(longest)} Palimpsa is ahead in {num_ahead} of {num_pairs} pairs of one rate."
    )
    header = ["difference", "at the chosen rates", *(f"at {lr:g}" for lr in rates), "mean over the rates"]
    return _table(header, cells, caption)


def ablation_summary(results: Path) -> str:
    """A row a variant of Palimpsa-D: accuracies at the two greatest lengths, and those of Figure 2's seeds."""
    _, tested = _experiment(results, "mqar_ablation")
    _, figure2 = _experiment(results, "mqar_curriculum")
    lengths = _lengths(tested)[-2:]
    cells, in_figure2 = [], []
    for model in model_order(tested["model"]):
        own, other = (rows.loc[rows["model"] == model] for rows in (tested, figure2))
        cells.append([own["label"].iloc[0], *(_each_seed(_accuracies(own, length)) for length in lengths)])
        if len(other):
            accuracies = " and ".join(_mean_and_std(_accuracies(other, length)) for length in lengths)
            in_figure2.append(f"{markdown_text(own['label'].iloc[0])} {accuracies} ({other['seed'].nunique()} seeds)")
    caption = (
        f"Test accuracy in %, the mean and in brackets each seed, at rate {_rate_text(tested)}. In Figure 2: "
        f"{', '.join(in_figure2)}."
    )
    return _table(["variant", *map(_length_text, lengths)], cells, caption)


def long_context_summary(results: Path) -> str:
    """A row a model: accuracy at the greatest length after the steps of Figure 2, and after four times as many."""
    _, tested = _experiment(results, "mqar_long")
    figure2, _ = _experiment(results, "mqar_curriculum")
    length = _lengths(tested)[-1]
    cells = []
    for model in model_order(tested["model"]):
        own = tested.loc[tested["model"] == model]
        # At the rate of the long runs, which need not be the one that Figure 2 shows.
        before = _accuracies(figure2.loc[(figure2["model"] == model) & figure2["lr"].isin(own["lr"])], length)
        accuracies = [f"{_mean_and_std(before)} ({len(before)} seeds)", _each_seed(_accuracies(own, length))]
        cells.append([own["label"].iloc[0], _rate_text(own), *accuracies])
    caption = f"Test accuracy in % at {_length_text(length)}; last column: the mean, and in brackets each seed."
    steps = [int(rows.loc[rows["seq_len"] == length, "steps"].max()) for rows in (figure2, tested)]
    return _table(["model", "rate", *(f"at most {number:,} steps" for number in steps)], cells, caption)


def scratch_summary(results: Path) -> str:
    """A row a model trained on one length from fresh weights: accuracy and steps of each seed at its best rate."""
    _, tested = _experiment(results, "mqar_scratch")
    length = _lengths(tested)[-1]
    tested = tested.loc[tested["seq_len"] == length]
    cells = []
    for model in model_order(tested["model"]):
        own = tested.loc[tested["model"] == model]
        ends = zip(own["steps"], own["ended_by"], strict=True)
        steps = ", ".join(f"{steps:,}" if ended_by == "accuracy" else "not reached" for steps, ended_by in ends)
        cells.append([own["label"].iloc[0], _rate_text(own), _each_seed(_accuracies(own, length)), steps])
    caption = (
        f"Test accuracy in % at {_length_text(length)}, the mean and in brackets each seed; steps until a seed reached "
        f"99% of the validation, within at most {int(tested['steps'].max()):,}."
    )
    return _table(["model", "rate", "test accuracy", "steps to 99%"], cells, caption)


def operator_speed_table(results: Path) -> str:
    """A row a shape and operator: milliseconds, memory, and how many times simple GLA's of the same run they are."""
    rows = read_operator_csv(results / "kernels", "operators", DEVICE)
    table = {(row["shape"], row["operator"]): row for row in rows.to_dict("records") if row["case"] == "table"}
    shapes = [shape for shape, operator in table if operator == "palimpsa" and (shape, BASELINE) in table]
    if not shapes:
        raise ResultError(f"{results / 'kernels'}/operators_{DEVICE}.csv: no shape of case table with both operators")
    cells = []
    for shape, operator in product(shapes, OPERATORS):
        if (shape, operator) in table:
            own, baseline = table[shape, operator], table[shape, BASELINE]
            sizes = ", ".join(str(own[letter]) for letter in "BTHKV")
            times = [with_device_time(own[f"{name}_ms"], own[f"{name}_device_ms"], ".3g") for name in PASSES]
            ratios = [
                with_device_time(*(own[f"{name}{of}_ms"] / baseline[f"{name}{of}_ms"] for of in ("", "_device")), ".2f")
                for name in PASSES
            ]
            memory = own["peak_memory_mib"]
            ratios.append(f"{memory / baseline['peak_memory_mib']:.2f}")
            cells.append([OPERATORS[operator], sizes, *times, f"{memory:.0f}", *ratios])
    caption = (
        "As called, and in brackets of the GPU alone, without what the host takes, where that was measured. The last "
        f"three columns: how many times that of {OPERATORS[BASELINE]}, of the same run."
    )
    if any(operator == "palimpsa_scalar" for _, operator in table):
        caption += " The goals of one precision a head are at most 1.4, 1.6 and 1.5, where B is 8 and T 4,096."
    header = ["operator", "B, T, H, K, V", "forward, ms", "with backward", "peak memory, MiB"]
    return _table([*header, "forward, ratio", "with backward, ratio", "memory, ratio"], cells, caption)


def throughput_summary(results: Path) -> str:
    """How many times as long as simple GLA's Palimpsa's prefill takes, and its decoding."""
    rows = read_operator_csv(results / "kernels", "throughput", DEVICE)
    rows = rows.loc[rows["operator"] == "palimpsa"]
    prefill, decode = (rows.loc[rows["case"] == case] for case in ("prefill", "decode"))
    if prefill.empty or decode.empty:
        raise ResultError(f"{results / 'kernels'}/throughput_{DEVICE}.csv: no row of Palimpsa's prefill or decoding")
    device = markdown_text(prefill["device"].iloc[0])
    return _wrap(
        f"On one {device} Palimpsa's prefill takes {prefill['slowdown'].min():.1f} to "
        f"{prefill['slowdown'].max():.1f} times as long as simple GLA's, at lengths from {prefill['T'].min():,} to "
        f"{prefill['T'].max():,}, and its decoding of {decode['B'].iloc[0]} sequences at once "
        f"{decode['slowdown'].iloc[0]:.1f} times as long."
    )


def training_speed_table(results: Path) -> str:
    """A row a model: milliseconds of a training step at each length; the range, and how busy the GPU is."""
    rows = read_training_csv(results / "training", DEVICE)
    lengths = _lengths(rows)
    times = {(row["model"], row["seq_len"]): row["ms_per_step"] for row in rows.to_dict("records")}
    labels = dict(zip(rows["model"], rows["label"], strict=True))
    cells = [
        [labels[model], *(f"{times[model, n]:.2f}" if (model, n) in times else "-" for n in lengths)]
        for model in model_order(labels)
    ]
    palimpsa = [time for (model, _), time in times.items() if model == "palimpsa_d"]
    tokens = ", ".join(f"{size:,}" for size in sorted(rows["tokens_per_step"].unique()))
    device = markdown_text(rows["device"].iloc[0])
    caption = (
        f"Milliseconds a step of {tokens} tokens on one {device}: {min(times.values()):.1f} to "
        f"{max(times.values()):.1f} ms, of Palimpsa-D {min(palimpsa):.1f} to {max(palimpsa):.1f} ms. The GPU is busy "
        f"{rows['busy_share'].min():.0%} of the time or more."
    )
    return _table(["model", *map(_length_text, lengths)], cells, caption)


TEXT_BLOCKS: dict[str, Callable[[Path], str]] = {
    "figure2_h200_table": figure2_h200_table,
    "figure2_gaps": figure2_gaps,
    "ablation_summary": ablation_summary,
    "long_context_summary": long_context_summary,
    "scratch_summary": scratch_summary,
    "selection_table": selection_table,
    "beyond_table": beyond_table,
    "interference_table": interference_table,
    "plasticity_costs": plasticity_costs,
    "operator_speed_table": operator_speed_table,
    "throughput_summary": throughput_summary,
    "training_speed_table": training_speed_table,
    "pretraining_costs": pretraining_costs,
    "zero_shot_summary": zero_shot_summary,
    "evaluation_speed_table": evaluation_speed_table,
    "finetuning_controls": controls_text,
    "finetuning_summary": finetuning_summary,
    "calibration_summary": calibration_summary,
}


def _experiment(results: Path, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The dots of a task's Figure 2 at SCALE, at every learning rate, and those at each model's chosen one.

    Rows of runs.csv of finished runs at stages that are tested, sorted by model, rate, length and seed.
    """
    rows = one_experiment(read_runs_csv(results / "mqar" / "runs.csv"), task, SCALE)
    tested = finished_stages(rows).sort_values(["model", "lr", "seq_len", "seed"], ignore_index=True)
    return tested, at_chosen_rates(tested, choose_learning_rates(rows))


def _lengths(rows: pd.DataFrame) -> list[int]:
    return sorted({int(length) for length in rows["seq_len"]})


def _accuracies(rows: pd.DataFrame, length: int) -> np.ndarray:
    """Test accuracies at a length, in the order of the rows."""
    return rows.loc[rows["seq_len"] == length, "test_accuracy"].to_numpy(dtype=float)


def _length_text(length: int) -> str:
    return f"L {length:,}"


def _rate_text(rows: pd.DataFrame) -> str:
    return ", ".join(f"{lr:g}" for lr in sorted(set(rows["lr"])))


def _mean_and_std(accuracies: np.ndarray) -> str:
    return mean_and_std(accuracies.mean(), accuracies.std(ddof=1) if len(accuracies) > 1 else np.nan)


def _each_seed(accuracies: np.ndarray) -> str:
    """The mean, and in brackets every seed: "79.0 (78.9, 79.1)"."""
    return f"{percent(accuracies.mean())} ({', '.join(map(percent, accuracies))})"


def _table(header: list[str], cells: list[list[str]], caption: str = "") -> str:
    lines = markdown_table(header, cells)
    return "\n".join([*lines, "", _wrap(caption)] if caption else lines)


def _wrap(text: str) -> str:
    return textwrap.fill(text, 118, break_on_hyphens=False)
