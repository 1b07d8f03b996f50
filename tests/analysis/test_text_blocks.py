"""The numbers that README.md and docs/ take from CSV files, against numbers computed by hand."""

from __future__ import annotations

import csv

import pytest

from palimpsa.analysis import text_blocks
from palimpsa.analysis.collect.benchmark_columns import OPERATOR_COLUMNS
from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.runs.schema import ResultError

H200 = {"scale": "h200", "steps": None}


@pytest.fixture(scope="module")
def results(run_writer, tmp_path_factory):
    """A small results folder: Palimpsa-D and -M with their twins at two rates, and one run of each other task."""
    root = tmp_path_factory.mktemp("blocks")
    add_run = run_writer(root)
    # Accuracies at L 32 and L 64; 0.01 is the better rate in validation.
    for model, shift in (("palimpsa_d", 0.04), ("palimpsa_d_nometa", 0.0), ("palimpsa_m", 0.0), ("mamba2", 0.02)):
        for lr, level in ((1e-3, 0.5), (1e-2, 0.7)):
            for seed in (1, 2):
                test = [level + shift, level + shift + 0.1 * (seed - 1)]
                state = 0 if model == "mamba2" else 1024
                add_run(model=model, lr=lr, seed=seed, validation=[level, level], test=test, state_size=state, **H200)
    add_run(lr=2e-2, seed=1, status="failed", validation=[], lengths=[], **H200)
    for seed in (1, 2):
        ablation = {"model": "palimpsa_d", "lr": 1e-3, "seed": seed, "validation": [0.3, 0.2 + 0.1 * seed]}
        add_run(task="mqar_ablation", **ablation, **H200)
        # At a rate that Figure 2 does not show.
        add_run(task="mqar_long", **ablation, **H200)
        accuracy = [0.99 if seed == 2 else 0.6]
        add_run(task="mqar_scratch", seed=seed, lengths=[64], validation=accuracy, **H200)
    write_collected(collect([root / "runs"], root / "mqar"), root / "mqar")
    return root


def table(text: str) -> list[list[str]]:
    """The cells of the rows below the header."""
    rows = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("|")]
    return rows[2:]


def test_figure_2_has_a_row_a_model_at_its_chosen_rate(results):
    assert table(text_blocks.figure2_h200_table(results)) == [
        ["Palimpsa-D", "1,024", "0.01", "2", "74.0 ± 0.0", "79.0 ± 7.1"],
        ["D w/o Meta", "1,024", "0.01", "2", "70.0 ± 0.0", "75.0 ± 7.1"],
        ["Palimpsa-M", "1,024", "0.01", "2", "70.0 ± 0.0", "75.0 ± 7.1"],
        ["Mamba-2 (M w/o Meta)", "grows", "0.01", "2", "72.0 ± 0.0", "77.0 ± 7.1"],
    ]


def test_gaps_are_differences_of_means_with_their_standard_error(results):
    text = text_blocks.figure2_gaps(results)
    # Both samples have the variance 0.005 and two seeds: a standard error of sqrt(0.005) or 7.1 points.
    assert table(text) == [
        ["Palimpsa-D minus D w/o Meta, L 32", *["4.0 (0.0)"] * 4],
        ["Palimpsa-M minus Mamba-2 (M w/o Meta), L 32", *["-2.0 (0.0)"] * 4],
        ["Palimpsa-D minus D w/o Meta, L 64", *["4.0 (7.1)"] * 4],
        ["Palimpsa-M minus Mamba-2 (M w/o Meta), L 64", *["-2.0 (7.1)"] * 4],
    ]
    assert "At L 64 Palimpsa is ahead in 2 of 4 pairs of one rate." in " ".join(text.split())


def test_a_model_joins_the_gaps_when_it_has_runs(run_writer, tmp_path):
    add_run = run_writer(tmp_path)
    for model, level in (("palimpsa_d_scalar", 0.8), ("palimpsa_d_nometa", 0.7)):
        for seed in (1, 2):
            add_run(model=model, lr=1e-2, seed=seed, validation=[level, level], test=[level, level], **H200)
    write_collected(collect([tmp_path / "runs"], tmp_path / "mqar"), tmp_path / "mqar")
    text = text_blocks.figure2_gaps(tmp_path)
    assert table(text) == [
        ["Palimpsa-D, scalar minus D w/o Meta, L 32", *["10.0 (0.0)"] * 3],
        ["Palimpsa-D, scalar minus D w/o Meta, L 64", *["10.0 (0.0)"] * 3],
    ]
    assert "Palimpsa is ahead in 1 of 1 pairs of one rate." in " ".join(text.split())


def test_the_ablation_shows_each_seed_and_the_seeds_of_figure_2(results):
    text = text_blocks.ablation_summary(results)
    assert table(text) == [["Palimpsa-D", "30.0 (30.0, 30.0)", "35.0 (30.0, 40.0)"]]
    assert "at rate 0.001. In Figure 2: Palimpsa-D 74.0 ± 0.0 and 79.0 ± 7.1 (2 seeds)." in " ".join(text.split())


def test_long_runs_are_beside_those_of_figure_2_at_the_same_rate(results):
    assert table(text_blocks.long_context_summary(results)) == [
        ["Palimpsa-D", "0.001", "59.0 ± 7.1 (2 seeds)", "35.0 (30.0, 40.0)"]
    ]


def test_runs_from_scratch_show_when_they_reached_99_percent(results):
    text = text_blocks.scratch_summary(results)
    assert table(text) == [["Palimpsa-D", "0.001", "79.5 (60.0, 99.0)", "not reached, 120"]]


def write_operators(folder, rows: list[dict]) -> None:
    """operators_*.csv with these rows of case `table`, all of one shape."""
    folder.mkdir(parents=True)
    shared = {"case": "table", "shape": "170m", "B": 8, "T": 4096, "H": 16, "K": 48, "V": 96, "device": "NVIDIA H200"}
    with (folder / f"operators_{text_blocks.DEVICE}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, OPERATOR_COLUMNS["operators"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([shared | row for row in rows])


def test_operators_are_beside_simple_gla_of_the_same_run(tmp_path):
    times = ("forward_ms", "forward_backward_ms", "forward_device_ms", "forward_backward_device_ms")
    names = ("operator", *times, "peak_memory_mib")
    numbers = [
        ("simple_gla", 0.5, 2.0, 0.4, 1.0, 800),
        ("palimpsa", 1.25, 8.0, "", "", 1000),
        ("palimpsa_scalar", 0.65, 3.0, 0.6, 2.0, 1200),
        ("gated_deltanet", 1.0, 5.0, 1.0, 5.0, 1600),
    ]
    rows = [dict(zip(names, row, strict=True)) for row in numbers]
    write_operators(tmp_path / "kernels", rows)
    text, sizes = text_blocks.operator_speed_table(tmp_path), "8, 4096, 16, 48, 96"
    assert table(text) == [
        ["Palimpsa", sizes, "1.25", "8", "1000", "2.50", "4.00", "1.25"],
        [
            *("Palimpsa, one precision a head", sizes, "0.65 (0.6)", "3 (2)", "1200"),
            *("1.30 (1.50)", "1.50 (2.00)", "1.50"),
        ],
        ["simple GLA (fla)", sizes, "0.5 (0.4)", "2 (1)", "800", "1.00 (1.00)", "1.00 (1.00)", "1.00"],
        ["Gated DeltaNet (fla)", sizes, "1 (1)", "5 (5)", "1600", "2.00 (2.50)", "2.50 (5.00)", "2.00"],
    ]
    assert "at most 1.4, 1.6 and 1.5" in " ".join(text.split())
    write_operators(tmp_path / "before" / "kernels", rows[:2])
    assert "goals" not in text_blocks.operator_speed_table(tmp_path / "before")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ResultError, match=r"mqar/runs\.csv"):
        text_blocks.figure2_h200_table(tmp_path)
    with pytest.raises(ResultError, match=r"operators_nvidia-h200\.csv: no shape"):
        text_blocks.operator_speed_table(tmp_path)
    with pytest.raises(ResultError, match=r"throughput_nvidia-h200\.csv: no row"):
        text_blocks.throughput_summary(tmp_path)
