"""How many tokens a second a device could reach at most with an operator: what bounds it, and nothing lost."""

# H heads, K key dim, V value dim, T tokens of a sequence

from typing import Any

import pandas as pd

_BYTES = {"bfloat16": 2, "float32": 4}
# States and decays, whatever the inputs are.
_FLOAT32 = 4


def with_limits(throughput: pd.DataFrame, operators: pd.DataFrame) -> pd.DataFrame:
    """The rows of Palimpsa with importances, and a column `limit`, in thousands of tokens a second.

    Prefill of a precision for every row takes one reciprocal an entry of the memory at each token, at the rate of
    `limit_ps_per_element`. With one precision a head it reads q, k, v, beta and g and writes o and the final state,
    each once; and a decoded token reads and writes the state: both at the bandwidth of the copy.

    Args:
        throughput: of throughput_SLUG.csv.
        operators: of operators_SLUG.csv of the same device: the copy, and the limit of a reciprocal.

    Returns:
        those rows that the files know the limit of.
    """
    bandwidths = operators.loc[operators["case"] == "copy", "bandwidth_gb_s"].dropna().to_list()
    reciprocals = operators["limit_ps_per_element"].dropna().to_list()
    rows = throughput.loc[throughput["operator"].isin(["palimpsa", "palimpsa_scalar"])]
    limits = [_limit(row, bandwidths, reciprocals) for row in rows.to_dict("records")]
    return rows.assign(limit=pd.Series(limits, rows.index, dtype=float)).dropna(subset=["limit"])


def _limit(row: dict[Any, Any], bandwidths: list[float], reciprocals: list[float]) -> float | None:
    """Thousands of tokens a second of one row; None where the files do not say."""
    H, K, V = row["H"], row["K"], row["V"]
    if row["operator"] == "palimpsa" and row["case"] == "prefill":
        # ps an element, H K V elements a token.
        return 1e9 / (reciprocals[0] * H * K * V) if reciprocals else None
    if not bandwidths or row["dtype"] not in _BYTES:
        return None
    num_precisions = 1 if row["operator"] == "palimpsa_scalar" else V
    state = _FLOAT32 * H * K * (V + num_precisions)
    if row["case"] == "decode":
        num_bytes = 2 * state
    else:
        num_bytes = H * (_BYTES[row["dtype"]] * (2 * K + 2 * V + num_precisions) + _FLOAT32) + state / row["T"]
    # GB a second, bytes a token.
    return 1e6 * bandwidths[0] / num_bytes
