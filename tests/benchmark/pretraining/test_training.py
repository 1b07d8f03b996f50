"""What the curves of a run say of its cost."""

import math

import pytest


def row_cells(*arguments):
    # Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
    from palimpsa.benchmark.pretraining.training import row_cells

    return row_cells(*arguments)


def rows(*speeds: float, losses: tuple[float, ...] = (), **more: float) -> dict[int, dict[str, float]]:
    """A row every two steps."""
    return {
        2 * place: {
            "tokens_per_s": speed,
            "data_wait": 0.1,
            "gradient_norm": 1.0,
            "loss": losses[place - 1] if losses else 3.0 - place / 10,
            **more,
        }
        for place, speed in enumerate(speeds, start=1)
    }


def test_the_median_is_over_rows_after_the_warm_up_and_up_to_the_end():
    cells = row_cells(rows(1, 1, 10, 30, 20, 1000), 4, 10)
    assert cells["tokens_per_s"] == 20
    assert (cells["first_loss"], cells["loss"]) == (2.9, 2.5)
    assert (cells["mfu"], cells["peak_memory_gib"]) == (None, None)


def test_memory_is_the_most_of_the_whole_run_and_a_row_of_a_probe_counts_not():
    found = rows(1, 2, 3, mfu=0.4, peak_memory_gib=5.0)
    found[2]["peak_memory_gib"] = 9.0
    found[1] = {"num_tokens/layer0": 3.0}
    cells = row_cells(found, 2, 6)
    assert (cells["peak_memory_gib"], cells["mfu"], cells["tokens_per_s"]) == (9.0, 0.4, 2.5)


@pytest.mark.parametrize("losses", [(2.0, 2.0), (2.0, 2.5), (2.0, math.nan)])
def test_a_loss_that_has_not_fallen_is_no_training(losses):
    with pytest.raises(RuntimeError, match="the loss went from 2 to"):
        row_cells(rows(1, 1, losses=losses), 2, 4)


@pytest.mark.parametrize("found", [{}, rows(1), rows(1, 1)])
def test_a_run_that_ended_early_is_told(found):
    with pytest.raises(RuntimeError, match="ended before its measured steps"):
        row_cells(found, 2, 6)
