"""Figure 4 of arXiv 2602.09075: what a memory recalls of the pairs it stored, against their age."""

import pandas as pd
from matplotlib.figure import Figure

from palimpsa.analysis.draw.canvas import figure_style, heading, log_axis, new_figure
from palimpsa.analysis.style import MODEL_STYLES

_LINES = (
    ("#222222", ":"),
    (MODEL_STYLES["palimpsa_m"].color, "--"),
    (MODEL_STYLES["palimpsa_d"].color, "-"),
)


def figure4(rows: pd.DataFrame) -> Figure:
    """Error and similarity of recall against age, one line a memory, mean +- 1 std over memories."""
    with figure_style():
        figure = new_figure(9, 4)
        error, similarity = figure.subplots(1, 2)
        names = list(dict.fromkeys(rows["memory"]))
        for name, (color, dashes) in zip(names, _LINES, strict=False):
            own = rows.loc[rows["memory"] == name].sort_values("age")
            for axes, column in ((error, "error"), (similarity, "similarity")):
                # Sixteen ages a point: one pair alone is noise.
                binned = own.groupby((own["age"] - 1) // 16)[["age", column, f"{column}_std"]].mean()
                mean, std = binned[column], binned[f"{column}_std"]
                # The first above the others: it has the same directions as the second.
                axes.plot(
                    binned["age"], mean, color=color, linestyle=dashes, label=name, zorder=4 if name == names[0] else 3
                )
                axes.fill_between(binned["age"], mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
        error.set_ylabel("squared error of the recalled value\n(1: recalling nothing)")
        log_axis(error)
        error.axhline(1.0, color="#444444", linewidth=0.7)
        similarity.set_ylabel("cosine of recalled and stored value")
        for axes in (error, similarity):
            axes.set_xlabel("age of the pair (pairs stored since)")
        similarity.legend()
        heading(
            figure,
            "Figure 4: what a memory recalls of 512 pairs, against their age",
            "by the operator, one head of 32 keys; mean and std over 64 memories",
        )
    return figure
