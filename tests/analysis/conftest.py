"""Synthetic run directories: small, deterministic, of the format that training writes."""

from __future__ import annotations

import csv
import json
import math
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.analysis.draw import canvas
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates, one_experiment
from palimpsa.runs.read import read_curves_csv, read_runs_csv

RunWriter = Callable[..., Path]

SCRIPTS = Path(__file__).parents[2] / "scripts"

LABELS = {
    "palimpsa_d": "Palimpsa-D",
    "palimpsa_d_scalar": "Palimpsa-D, scalar",
    "palimpsa_d_nometa": "D w/o Meta",
    "palimpsa_m": "Palimpsa-M",
    "mamba2": "Mamba-2 (M w/o Meta)",
    "gla": "GLA",
}


def make_result(
    *,
    model: str = "palimpsa_d",
    lr: float = 1e-3,
    seed: int = 1,
    validation: Sequence[float] = (0.9, 0.8),
    test: Sequence[float] | None = None,
    lengths: Sequence[int] = (32, 64),
    plateau: Sequence[int | None] | None = None,
    status: str = "finished",
    task: str = "mqar_curriculum",
    scale: str = "laptop",
    state_size: int = 1024,
    wall_time_s: float = 36.0,
    stop_accuracy: float = 0.99,
) -> dict[str, Any]:
    """A result.json: for a curriculum a warm-up stage, then one stage a length.

    validation, test: accuracies, one a length. `test` is `validation` by default; `plateau` is one exit step a length.
    """
    scratch = task == "mqar_scratch"
    test = validation if test is None else test
    plateau = [60 + seed] * len(lengths) if plateau is None else plateau
    # (length, pairs, validation accuracy, test accuracy, plateau exit)
    plan = [] if scratch else [(16, 4, 0.99, None, 50)]
    plan += [
        (length, length // 4, accuracy, tested, exit_step)
        for length, accuracy, tested, exit_step in zip(lengths, validation, test, plateau, strict=True)
    ]
    stages = [
        {
            "stage": index,
            "seq_len": length,
            "num_pairs": pairs,
            "steps": 120,
            "ended_by": "accuracy" if accuracy >= 0.99 else "cap",
            "plateau_exit_step": exit_step,
            "validation_accuracy": accuracy,
            "test_accuracy": tested,
            "test_accuracy_by_age": None if tested is None else [tested, None, 0.5, 0.25],
            "test_loss": None if tested is None else 1 - tested,
        }
        for index, (length, pairs, accuracy, tested, exit_step) in enumerate(plan)
    ]
    return {
        "format": 1,
        "status": status,
        "error": "RuntimeError: the loss is nan" if status == "failed" else None,
        "run": {
            "task": task,
            "scale": scale,
            "model": model,
            "label": LABELS.get(model, model),
            "lr": lr,
            "seed": seed,
            "state_size": state_size,
            "num_parameters": 12_345,
        },
        "stages": stages,
        "metrics": {"train_loss": 0.1},
        "config": {
            "seed": seed,
            "variant": "",
            "run_dir": f"results/runs/{model}/{lr}/{seed}",
            "model": {"name": model, "label": LABELS.get(model, model), "mixer": {"num_heads": 2}},
            "optimizer": {"lr": lr, "beta1": 0.9},
            "scale": {"name": scale, "seeds": "1,2,3", "learning_rates": f"{lr}"},
            "task": {
                "name": task,
                "vocab_size": 128,
                "seq_len": lengths[0] if scratch else None,
                "directory": f"{task}_L{lengths[0]}" if scratch else task,
                "stop_accuracy": stop_accuracy,
            },
        },
        "config_hash": "0123456789abcdef",
        "provenance": {
            "git_revision": "f00dfeed",
            "git_dirty": False,
            "versions": {"python": "3.11.7", "torch": "2.13.0", "triton": None},
            "device": "a processor, 2 threads",
            "started": "2026-11-22T20:00:00+00:00",
            "wall_time_s": wall_time_s,
            "command": "train.py -m +sweep=mqar_figure2",
        },
    }


def history_rows(
    result: dict[str, Any], *, num_steps: int = 300, log_every: int = 10, num_heads: int = 2
) -> list[dict[str, Any]]:
    """Learning curves that belong to a result: a plateau, a jump, slowly growing memory."""
    run = result["run"]
    kind = len(run["model"])
    noise = np.random.default_rng([run["seed"], round(run["lr"] * 1e6), kind])
    importance = "palimpsa" in run["model"] and "nometa" not in run["model"]
    jump = num_steps * (0.15 + 0.02 * run["seed"] + 0.02 * kind)
    rows = []
    for step in range(0, num_steps + 1, log_every):
        row: dict[str, Any] = {"step": step, "stage": 3 * step // (num_steps + 1)}
        if step:
            plateau = 4.2 / (1 + math.exp(12 * (step - jump) / num_steps))
            row |= {"loss": plateau + 0.05 + 0.05 * noise.random(), "learning_rate": run["lr"]}
            row |= {"tokens_per_s": 1e5 * (1 + noise.random())}
        if step % (5 * log_every) == 0:
            row |= _memory(step / num_steps * kind / 5, importance, num_heads, noise)
        if step and step % 100 == 0:
            row["validation_accuracy"] = min(1.0, step / num_steps)
        rows.append(row)
    return rows


def _memory(progress: float, importance: bool, num_heads: int, noise: np.random.Generator) -> dict[str, float]:
    heads = [(layer, head) for layer in range(2) for head in range(num_heads)]
    row: dict[str, float] = {}
    for name, used in (("window", True), ("metaplasticity", importance)):
        if not used:
            continue
        for layer, head in heads:
            base = 600 * 1.4**head if name == "window" else 2.0 + head
            growth = 1 + (1 + layer) * progress + 0.1 * noise.random()
            row[f"{name}/layer{layer}/head{head}"] = base * growth
        values = [row[f"{name}/layer{layer}/head{head}"] for layer, head in heads]
        row[f"{name}_mean"] = sum(values) / len(values)
    return row


def write_run(folder: Path, result: dict[str, Any], rows: list[dict[str, Any]] | None) -> Path:
    """Write result.json and, unless `rows` is None, history.csv."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    if rows is not None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / "history.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def run_writer() -> Callable[[Path], RunWriter]:
    """run_writer(root) is an `add_run` that writes below `root`."""

    def writer(root: Path) -> RunWriter:
        def add(*, folder: str | None = None, steps: int | None = 300, num_heads: int = 2, **values: Any) -> Path:
            result = make_result(**values)
            run = result["run"]
            length = result["config"]["task"]["seq_len"] or ""
            place = folder or (
                f"runs/{run['task']}{length}/{run['scale']}/{run['model']}/lr_{run['lr']}/seed_{run['seed']}"
            )
            rows = None
            if steps is not None:
                rows = history_rows(result, num_steps=steps, num_heads=num_heads)
            return write_run(root / place, result, rows)

        return add

    return writer


@pytest.fixture
def add_run(run_writer: Callable[[Path], RunWriter], tmp_path: Path) -> RunWriter:
    """add_run(model=..., lr=..., seed=..., ...) writes a run below tmp_path/runs; see make_result.

    folder: where below tmp_path; steps: length of the curves, None for no curves.
    """
    return run_writer(tmp_path)


@pytest.fixture(scope="session")
def example_results(run_writer: Callable[[Path], RunWriter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, two lengths, three seeds of two rates; one seed of GLA failed at its best rate. Read only."""
    root = tmp_path_factory.mktemp("example")
    add_run = run_writer(root)
    for model in ("palimpsa_d", "gla"):
        for lr, accuracy in ((3e-3, 0.5), (1e-2, 0.9)):
            for seed in (1, 2, 3):
                failed = (model, lr, seed) == ("gla", 1e-2, 3)
                add_run(
                    model=model,
                    lr=lr,
                    seed=seed,
                    validation=[accuracy, accuracy - 0.01 * seed],
                    status="failed" if failed else "finished",
                    steps=200 + 100 * seed,
                )
    write_collected(collect([root / "runs"], root / "mqar"), root / "mqar")
    return root / "mqar"


@pytest.fixture(scope="session")
def example(example_results: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The rows of `example_results`'s runs.csv and curves.csv, and the chosen learning rates."""
    rows = one_experiment(read_runs_csv(example_results / "runs.csv"), "mqar_curriculum", "laptop")
    return rows, read_curves_csv(example_results / "curves.csv"), choose_learning_rates(rows)


@pytest.fixture
def png_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are saved in half of the time, without SVG."""
    monkeypatch.delitem(canvas.FORMATS, "svg")


@pytest.fixture
def run_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """run_script("plot_figures.py", *arguments): exit code, stdout and stderr, in tmp_path."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
