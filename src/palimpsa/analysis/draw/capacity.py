"""What one layer holds of random pairs, without any training."""

from itertools import cycle, product

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from palimpsa.analysis.draw.canvas import figure_style, heading, new_figure
from palimpsa.analysis.style import MODEL_STYLES

_RULE_COLORS = {
    "linear attention": MODEL_STYLES["palimpsa_d_nometa"].color,
    "Palimpsa": MODEL_STYLES["palimpsa_d"].color,
    "delta rule": MODEL_STYLES["gated_deltanet"].color,
    "full covariance": "#222222",
}


def capacity_figure(rows: pd.DataFrame) -> Figure:
    """Share of random pairs that a layer recalls against their number, a line for each rule and key width, with the
    numbers that its state has."""
    with figure_style():
        figure = new_figure(6.5, 4.4)
        axes = figure.subplots()
        for (K, dashes), rule in product(zip(sorted(rows["K"].unique()), cycle(("-", "--"))), rows["rule"].unique()):
            own = rows.loc[(rows["rule"] == rule) & (rows["K"] == K)].sort_values("num_pairs")
            label = f"{rule}, {K} keys a head, state {own['state'].iloc[0]:,}"
            axes.plot(own["num_pairs"], own["accuracy"], dashes, color=_RULE_COLORS[rule], marker=".", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(rows["num_pairs"].unique()), [f"{n:,}" for n in sorted(rows["num_pairs"].unique())])
        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("pairs stored")
        axes.set_ylabel("pairs recalled")
        caption = "state: numbers a layer keeps; Palimpsa's with one precision a head"
        figure.legend(loc="outside lower center", ncols=2, title=caption, title_fontsize=8.5)
        heads, values, candidates = rows.iloc[0][["num_heads", "V", "num_candidates"]]
        sizes = f"{heads} heads of {values} values, {candidates:,} candidates; nothing learnt"
        heading(figure, "What one layer holds of random pairs", sizes)
    return figure
