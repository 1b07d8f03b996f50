"""What a device could reach at most, against numbers computed by hand."""

import pandas as pd
import pytest

from palimpsa.analysis.statistics.throughput_limits import with_limits

SIZES = {"H": 2, "K": 3, "V": 5, "dtype": "bfloat16"}
COPY = {"case": "copy", "operator": "copy", "bandwidth_gb_s": 1000.0, "limit_ps_per_element": None}
TABLE = {"case": "table", "operator": "palimpsa", "bandwidth_gb_s": None, "limit_ps_per_element": 0.25}


def limits(*operator_rows: dict, **changed) -> dict[tuple[str, str, int], float]:
    """The limits of both Palimpsas and the baseline, by case, operator and T."""
    rows = [
        SIZES | {"case": case, "operator": operator, "T": T} | changed
        for operator in ("palimpsa", "palimpsa_scalar", "palimpsa_without_metaplasticity", "simple_gla")
        for case, T in (("prefill", 10), ("prefill", 20), ("decode", 1))
    ]
    columns = ["case", "operator", "bandwidth_gb_s", "limit_ps_per_element"]
    found = with_limits(pd.DataFrame(rows), pd.DataFrame(operator_rows, columns=columns))
    return {(row["case"], row["operator"], row["T"]): row["limit"] for row in found.to_dict("records")}


def test_each_limit_is_what_was_computed_by_hand():
    # A reciprocal for each of 30 entries takes 7.5 ps.
    reciprocal = 1e12 / 7.5 / 1e3
    # States of 60 and 36 numbers, 4 bytes each. A token's inputs and output are 17 numbers of 2 bytes and a decay of 4,
    # in each of two heads; its share of the final state is a 10th or a 20th.
    assert limits(COPY, TABLE) == pytest.approx(
        {
            ("prefill", "palimpsa", 10): reciprocal,
            ("prefill", "palimpsa", 20): reciprocal,
            ("decode", "palimpsa", 1): 1e9 / (2 * 240),
            ("prefill", "palimpsa_scalar", 10): 1e9 / (2 * 38 + 14.4),
            ("prefill", "palimpsa_scalar", 20): 1e9 / (2 * 38 + 7.2),
            ("decode", "palimpsa_scalar", 1): 1e9 / (2 * 144),
        }
    )


def test_inputs_of_float32_are_twice_as_many_bytes():
    assert limits(COPY, dtype="float32")["prefill", "palimpsa_scalar", 10] == pytest.approx(1e9 / (2 * 72 + 14.4))


def test_what_the_files_do_not_say_has_no_limit():
    assert limits() == {}
    assert set(limits(TABLE)) == {("prefill", "palimpsa", 10), ("prefill", "palimpsa", 20)}
    assert ("prefill", "palimpsa", 10) not in limits(COPY)
    assert set(limits(COPY, TABLE, dtype="int8")) == set(limits(TABLE))
