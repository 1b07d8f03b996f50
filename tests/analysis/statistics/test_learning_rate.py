"""The learning rate of a figure: by mean validation accuracy over comparable seeds, or per seed."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.analysis.collect.result_files import collect
from palimpsa.analysis.statistics.learning_rate import (
    best_per_seed,
    choice_text,
    choose_learning_rates,
    not_compared,
    one_experiment,
    score_learning_rates,
)
from palimpsa.runs.schema import ResultError


@pytest.fixture
def read(tmp_path: Path):
    def rows(task: str = "mqar_curriculum", scale: str = "laptop") -> pd.DataFrame:
        return one_experiment(collect([tmp_path / "runs"], tmp_path / "out").runs, task, scale)

    return rows


def chosen_lr(rows: pd.DataFrame) -> dict[str, float]:
    return choose_learning_rates(rows).set_index("model")["lr"].to_dict()


def test_validation_mean_decides_and_test_accuracy_does_not(add_run, read):
    # By hand: validation means 0.80 (lr 1e-3) and 0.75 (lr 1e-2); the test accuracies of seed 2 are
    # better at 1e-2.
    add_run(lr=1e-3, seed=1, validation=[0.9, 0.8], test=[0.88, 0.78])
    add_run(lr=1e-3, seed=2, validation=[0.8, 0.7], test=[0.70, 0.60])
    add_run(lr=1e-2, seed=1, validation=[0.6, 0.6], test=[0.61, 0.61])
    add_run(lr=1e-2, seed=2, validation=[0.9, 0.9], test=[0.95, 0.55])
    rows = read()
    scores = score_learning_rates(rows)
    assert scores["score"].tolist() == pytest.approx([0.8, 0.75])
    assert scores["num_seeds"].tolist() == [2, 2]
    assert chosen_lr(rows) == {"palimpsa_d": 1e-3}

    best = best_per_seed(rows).set_index(["seq_len", "seed"])
    assert best["lr"].to_dict() == {(32, 1): 1e-3, (32, 2): 1e-2, (64, 1): 1e-3, (64, 2): 1e-3}
    assert best["test_accuracy"].to_dict() == {
        (32, 1): 0.88,
        (32, 2): 0.95,
        (64, 1): 0.78,
        (64, 2): 0.60,
    }


def test_warm_up_stages_do_not_count(add_run, read):
    # The warm-up stage of make_result is at 99%: with it the mean would be 0.66.
    add_run(validation=[0.5, 0.5])
    assert score_learning_rates(read())["score"].tolist() == [0.5]


def test_two_phase_sweep_compares_common_seeds(add_run, read):
    # Over all its seeds 1e-3 has 0.6, less than 1e-2 with 0.7; over the common seed it has 0.8.
    add_run(lr=1e-3, seed=1, validation=[0.8, 0.8])
    add_run(lr=1e-3, seed=2, validation=[0.5, 0.5])
    add_run(lr=1e-3, seed=3, validation=[0.5, 0.5])
    add_run(lr=1e-2, seed=1, validation=[0.7, 0.7])
    chosen = choose_learning_rates(read()).iloc[0]
    assert (chosen["lr"], chosen["num_seeds"], chosen["common_seeds"]) == (1e-3, 1, True)
    assert chosen["score"] == pytest.approx(0.8)
    assert chosen["num_finished"] == 3


def test_without_common_seeds_each_rate_has_its_own(add_run, read):
    add_run(lr=1e-3, seed=1, validation=[0.5, 0.5])
    add_run(lr=1e-2, seed=2, validation=[0.7, 0.7])
    chosen = choose_learning_rates(read()).iloc[0]
    assert (chosen["lr"], chosen["common_seeds"]) == (1e-2, False)


def test_ties_go_to_the_smaller_rate(add_run, read):
    for lr in (1e-2, 1e-3, 4.64e-3):
        add_run(lr=lr, validation=[0.5, 0.75])
    rows = read()
    assert chosen_lr(rows) == {"palimpsa_d": 1e-3}
    assert best_per_seed(rows)["lr"].tolist() == [1e-3, 1e-3]


def test_failed_run_counts_zero(add_run, read):
    # 1e-2 would win by its finished seed; with the failure its mean is 0.45.
    add_run(lr=1e-3, seed=1, validation=[0.6, 0.6])
    add_run(lr=1e-3, seed=2, validation=[0.6, 0.6])
    add_run(lr=1e-2, seed=1, validation=[0.9, 0.9])
    add_run(lr=1e-2, seed=2, validation=[0.9, 0.9], status="failed")
    rows = read()
    assert score_learning_rates(rows)["score"].tolist() == pytest.approx([0.6, 0.45])
    assert chosen_lr(rows) == {"palimpsa_d": 1e-3}
    # The stages that a failed run ended are no one's best either.
    assert best_per_seed(rows).set_index(["seq_len", "seed"])["lr"][32, 2] == 1e-3


def test_stage_that_was_not_reached_counts_zero(add_run, read):
    add_run(lr=1e-3, validation=[0.6, 0.6])
    add_run(lr=1e-2, validation=[0.9], lengths=[32])
    assert score_learning_rates(read())["score"].tolist() == pytest.approx([0.6, 0.45])


def test_model_without_finished_run_has_no_rate(add_run, read):
    add_run(model="gla", status="failed")
    add_run(model="mamba2")
    chosen = choose_learning_rates(read()).set_index("model")
    assert math.isnan(chosen.loc["gla", "lr"])
    assert (chosen.loc["gla", "label"], chosen.loc["gla", "num_finished"]) == ("GLA", 0)
    assert chosen.loc["mamba2", "lr"] == 1e-3


def test_scratch_seeds_need_every_length(add_run, read):
    # At 1e-2 the run of length 64 and seed 2 is still missing: seed 1 alone is compared.
    for lr, shift in ((1e-3, 0.0), (1e-2, 0.1)):
        for seed in (1, 2):
            for length, accuracy in ((32, 0.8), (64, 0.6)):
                if (lr, seed, length) != (1e-2, 2, 64):
                    values = {"lengths": [length], "validation": [accuracy - shift]}
                    add_run(task="mqar_scratch", lr=lr, seed=seed, **values)
    scores = score_learning_rates(read("mqar_scratch"))
    assert scores["score"].tolist() == pytest.approx([0.7, 0.6])
    assert scores["num_seeds"].tolist() == [1, 1]


def test_unknown_experiment_lists_the_known_ones(add_run, read):
    add_run()
    with pytest.raises(ResultError, match="no runs of mqar_curriculum/paper, expected one of"):
        read(scale="paper")


def add_sweep(add_run, **seeds_and_accuracy):
    """add_sweep(add_run, lr_0_005=([1, 2], 0.8)): runs of a rate at these seeds, all of one accuracy."""
    for name, (seeds, accuracy) in seeds_and_accuracy.items():
        for seed in seeds:
            lr = float(name.removeprefix("lr_").replace("_", "."))
            add_run(lr=lr, seed=seed, validation=[accuracy, accuracy], steps=None)


def test_one_exploratory_run_changes_nothing(add_run, read):
    add_sweep(add_run, lr_0_005=([1, 2, 3], 0.7), lr_0_01=([1, 2, 3], 0.8))
    add_sweep(add_run, lr_0_00464=([1], 0.95))
    rows = read()
    chosen = choose_learning_rates(rows).iloc[0]
    assert (chosen["lr"], chosen["num_seeds"], chosen["num_finished"], chosen["num_rates"]) == (1e-2, 3, 3, 2)
    scores = score_learning_rates(rows)
    assert scores["compared"].tolist() == [False, True, True]
    assert scores["num_seeds"].tolist() == [1, 3, 3]
    assert math.isnan(scores["score"][0])
    assert not_compared(rows) == ["Palimpsa-D: lr 0.00464 not compared (1 seed)"]


@pytest.mark.parametrize(
    ("seeds", "compared", "common"),
    [
        ({1e-3: 8, 2e-3: 3, 3e-3: 3, 4e-3: 3}, [True] * 4, 3),
        ({1e-3: 3, 2e-3: 1}, [True, True], 1),
        ({1e-3: 3}, [True], 3),
        ({1e-3: 8, 2e-3: 8, 3e-3: 3}, [True, True, False], 8),
    ],
    ids=["two-phases", "two-rates", "one-rate", "second-phase-at-two-rates"],
)
def test_rates_with_fewer_seeds_than_the_second_most_are_left_out(add_run, read, seeds, compared, common):
    for lr, count in seeds.items():
        for seed in range(1, count + 1):
            add_run(lr=lr, seed=seed, steps=None)
    rows = read()
    scores = score_learning_rates(rows)
    assert scores["compared"].tolist() == compared
    assert set(scores.loc[scores["compared"], "num_seeds"]) == {common}
    assert len(not_compared(rows)) == compared.count(False)


def test_all_rates_are_compared_when_nothing_else_finished(add_run, read):
    for lr in (1e-3, 2e-3):
        for seed in (1, 2):
            add_run(lr=lr, seed=seed, status="failed", steps=None)
    add_run(lr=3e-3, seed=1, steps=None)
    rows = read()
    assert score_learning_rates(rows)["compared"].all()
    assert chosen_lr(rows) == {"palimpsa_d": 3e-3}


def test_scratch_rate_without_a_complete_seed_is_listed(add_run, read):
    for lr, lengths in ((1e-3, (32, 64)), (1e-2, (32,))):
        for length in lengths:
            add_run(task="mqar_scratch", lr=lr, lengths=[length], validation=[0.5], steps=None)
    assert not_compared(read("mqar_scratch")) == ["Palimpsa-D: lr 0.01 not compared (1 seed)"]


def test_a_caption_calls_a_rate_chosen_only_where_there_was_a_choice(add_run, read):
    add_run(model="gla", lr=1e-3, seed=1)
    add_run(model="gla", lr=1e-3, seed=2)
    assert choice_text(read()) == "the only one that was run"
    add_run(model="mamba2", lr=1e-3, seed=1)
    add_run(model="mamba2", lr=1e-2, seed=1)
    assert choice_text(read()) == "chosen by mean validation accuracy where several were run"
    add_run(model="gla", lr=1e-2, seed=1)
    assert choice_text(read()) == "chosen by mean validation accuracy"
