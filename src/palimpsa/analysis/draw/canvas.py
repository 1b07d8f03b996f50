"""What all figures share: one style, axes, marks, and files that are the same byte for byte."""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator
from PIL import Image

from palimpsa.config.text import shortened
from palimpsa.runs.files import write_atomic

PNG_DPI = 150
# Pixels: Agg draws less than 2^16.
_MAX_SIDE = 60_000
# Characters of somebody else's text.
MAX_LABEL, MAX_TITLE = 80, 120
# Ending -> its metadata, without what differs from one drawing to the next.
FORMATS: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None}}
FAILED_COLOR = "#B00020"

_STYLE = {
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "font.size": 9.5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    # A label is text, whatever it holds; what is math says so itself.
    "text.parse_math": False,
    # Element ids from a fixed salt, glyphs as outlines: the same file on every machine.
    "svg.fonttype": "path",
    "svg.hashsalt": "palimpsa",
}


# All settings but those of windows and of the machine.
_DRAWN = {
    name: value
    for name, value in matplotlib.rcParamsDefault.items()
    if not name.startswith(("backend", "interactive", "toolbar"))
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's defaults and the style of this project's figures, whatever matplotlibrc says."""
    # Not by matplotlib.style, which reads the styles of whoever is logged in.
    settings: Any = _DRAWN | _STYLE
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches on the Agg canvas, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def heading(figure: Figure, title: str, subtitle: str) -> None:
    """A title over all panels, and a line under it."""
    lines = [shortened(line, MAX_TITLE) for line in (title, subtitle)]
    figure.suptitle("\n".join(lines), fontsize=12, linespacing=1.35)


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis, labelled in plain numbers where it spans up to five decades, also less than one."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high > 1e5 * low:
        # Matplotlib's own ticks.
        axes.yaxis.set_major_formatter(_PowersOfTen())
        axes.yaxis.set_minor_locator(NullLocator())
        return
    steps = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def ratio_axis(axes: Axes) -> None:
    """A y axis from 0 for what may be 0 and spans decades: linear up to 1, logarithmic above."""
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(_PowersOfTen())
    axes.set_ylim(bottom=0)


class _PowersOfTen(LogFormatterSciNotation):
    """Matplotlib's own labels of a logarithmic axis, which are math."""

    def format_ticks(self, values: list[float]) -> list[str]:
        axis: Any = self.axis
        for tick in axis.get_major_ticks(len(values)):
            tick.label1.set_parse_math(True)
        return super().format_ticks(values)


def length_axis(axes: Axes, lengths: Iterable[int]) -> None:
    """A logarithmic x axis of sequence lengths with a tick at each."""
    ticks = sorted({int(length) for length in lengths})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [_length_label(length) for length in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    margin = math.sqrt(2) if len(ticks) > 1 else 2
    axes.set_xlim(ticks[0] / margin, ticks[-1] * margin)
    axes.set_xlabel("sequence length T (tokens)")


def _length_label(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def origin_line(device: str, precision: str, dates: Iterable[str]) -> str:
    """Where and when a benchmark was run, for the line under a title: dates are ISO 8601, the first and last are told.

    >>> origin_line("NVIDIA H200", "bfloat16", ["2026-11-23T09:00", "2026-11-24T10:00"])
    'NVIDIA H200 · bfloat16 · 2026-11-23 to 2026-11-24'
    """
    days = sorted({date[:10] for date in dates})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{device} · {precision} · {when}"


def draw_failures(axes: Axes, place: tuple[float, float], count: int, *, beside: bool = False) -> None:
    """A cross at `place` (data coordinates) with `count` failed seeds above or beside it; nothing for 0."""
    if not count:
        return
    axes.plot(*place, "X", color=FAILED_COLOR, markersize=7, mec="white", zorder=6)
    axes.annotate(
        str(count),
        place,
        xytext=(5, -3) if beside else (0, 6),
        textcoords="offset points",
        ha="left" if beside else "center",
        color=FAILED_COLOR,
        fontsize=8,
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8},
        zorder=6,
    )


def failed_mark() -> Line2D:
    """The cross of `draw_failures` for a legend."""
    return Line2D([], [], linestyle="", marker="X", color=FAILED_COLOR, markersize=7, mec="white")


def _grow_to_legends(figure: Figure) -> None:
    """One that is wider than the figure would lose its ends, and one that is half as high would leave no panels."""
    for legend in figure.legends:
        extent = legend.get_window_extent()
        figure.set_figwidth(max(figure.get_figwidth(), extent.width / figure.dpi))
        if (height := extent.height / figure.dpi) > figure.get_figheight() / 2:
            figure.set_figheight(figure.get_figheight() + height)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png, with a palette, and `stem`.svg, the FORMATS; returns their paths.

    The bytes depend on the figure and on the versions of matplotlib and Pillow only. Raises OSError when the folder
    cannot be written.
    """
    _grow_to_legends(figure)
    dpi = min(PNG_DPI, _MAX_SIDE / max(figure.get_size_inches()))
    paths = []
    for suffix, metadata in FORMATS.items():
        buffer = io.BytesIO()
        with figure_style():
            figure.savefig(buffer, format=suffix, dpi=dpi, metadata=metadata)
        # Laid out once: both files show the same figure, in half of the time.
        figure.set_layout_engine("none")
        # Not with_suffix: a scale may have a dot in its name.
        content = palette_png(buffer.getvalue()) if suffix == "png" else buffer.getvalue()
        paths.append(write_atomic(stem.with_name(f"{stem.name}.{suffix}"), content))
    return paths


def palette_png(content: bytes, num_colors: int = 256) -> bytes:
    """A PNG in so many colours at most, on white: a third of the bytes, and lines and text as they were."""
    picture = Image.open(io.BytesIO(content))
    buffer = io.BytesIO()
    colors = picture.convert("RGB").quantize(num_colors, dither=Image.Dither.NONE)
    colors.save(buffer, "png", optimize=True, dpi=picture.info.get("dpi"))
    return buffer.getvalue()
