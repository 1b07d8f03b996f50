"""The loss of one run of pretraining, in training and on held-out text."""

import pandas as pd
from matplotlib.figure import Figure

from palimpsa.analysis.draw.canvas import figure_style, heading, log_axis, new_figure


def loss_curve(history: pd.DataFrame, *, title: str, subtitle: str) -> Figure:
    """Nats a token by training step: the mean of each logged row, and each validation.

    Args:
        history: history.csv of a run, with columns step, loss and validation_loss.
    """
    trained, validated = (history.dropna(subset=[name]) for name in ("loss", "validation_loss"))
    with figure_style():
        figure = new_figure(9.0, 4.6)
        axes = figure.subplots()
        axes.plot(trained["step"], trained["loss"], color="#9ecae1", linewidth=1.4, label="training")
        axes.plot(
            validated["step"],
            validated["validation_loss"],
            color="#08519c",
            marker="o",
            markersize=4,
            label="validation",
        )
        for name, rows in (("loss", trained), ("validation_loss", validated)):
            step, loss = (float(rows[column].iloc[-1]) for column in ("step", name))
            axes.annotate(f"{loss:.2f}", (step, loss), textcoords="offset points", xytext=(6, -3), fontsize=8.5)
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel("cross-entropy (nats a token)")
        axes.set_xlim(0, 1.08 * max(history["step"]))
        log_axis(axes)
        axes.legend()
        heading(figure, title, subtitle)
    return figure
