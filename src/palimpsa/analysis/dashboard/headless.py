"""The page in a browser without a window: how long it takes to open, and pictures of it for the documentation."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from palimpsa.analysis.draw.canvas import palette_png
from palimpsa.runs.files import write_atomic
from palimpsa.runs.read import cells_of, read_curves_csv, read_runs_csv
from palimpsa.runs.schema import RUN_KEY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = (1280, 900), (390, 844)
# Until the view is there and the first figure in sight is drawn.
READY = "#main[data-view] .plot[data-drawn]"
TIMEOUT_MS = 30_000
# Of a picture in the documentation.
MAX_PICTURE_BYTES = 150_000


class Picture(NamedTuple):
    """A picture of the page: the file's stem, the address behind #, the size of the window, light or dark."""

    name: str
    address: str
    size: tuple[int, int] = WIDE
    theme: str = "light"


# Those of docs/dashboard.md; RUN and OTHER are runs of the first experiment.
PICTURES = [
    Picture("overview", ""),
    Picture("learning_rates", "#rates"),
    Picture("dynamics", "#dynamics"),
    Picture("runs", "#runs?search=palimpsa&sort=-accuracy"),
    Picture("run", "#run/RUN"),
    Picture("compare", "#compare/RUN/OTHER"),
    Picture("speed", "#speed"),
    Picture("overview_dark", "", WIDE, "dark"),
    Picture("overview_narrow", "", NARROW),
]


def find_browser() -> str:
    """The path of an installed Chromium. Raises OSError where there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise OSError(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium that asks nothing of the network. Raises OSError: none, or no playwright, is installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise OSError("playwright is not installed; pip install 'palimpsa[dev]', or make setup") from None
    path = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(
    browser: Browser, page: Path, address: str = "", size: tuple[int, int] = WIDE, theme: str = "light"
) -> Page:
    """The dashboard at an address, in a context of its own."""
    width, height = size
    scheme = "dark" if theme == "dark" else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(f"{page.absolute().as_uri()}{address}", wait_until="commit")
    return tab


def write_many_runs(results: Path, folder: Path, num_runs: int) -> Path:
    """A folder of results with so many runs: those of results/mqar again and again, under other seeds.

    Raises:
        ResultError: results/mqar has no runs.csv or curves.csv, or none that can be read.
    """
    runs, curves = read_runs_csv(results / "mqar/runs.csv"), read_curves_csv(results / "mqar/curves.csv")
    keys = runs.loc[:, RUN_KEY].drop_duplicates()
    shifts = [1000 * copy for copy in range(-(-num_runs // max(len(keys), 1)))]

    def repeat(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame.assign(seed=frame["seed"] + shift) for shift in shifts])

    wanted = repeat(keys).head(num_runs)
    for name, frame in (("runs", runs), ("curves", curves)):
        again = repeat(frame).merge(wanted, on=RUN_KEY)
        write_atomic(folder / f"mqar/{name}.csv", cells_of(again).to_csv(index=False, lineterminator="\n"))
    for other in ("kernels", "training", "illustrations"):
        if (results / other).is_dir():
            shutil.copytree(results / other, folder / other)
    return folder


def measure_opening(page: Path, repeats: int = 5) -> list[float]:
    """Seconds from the request to the first figure drawn on the overview, once for each fresh browser's window."""
    seconds = []
    with open_browser() as browser:
        for _ in range(repeats):
            clock = time.perf_counter()
            tab = open_page(browser, page)
            tab.wait_for_selector(READY, timeout=TIMEOUT_MS)
            seconds.append(time.perf_counter() - clock)
            tab.context.close()
    return seconds


def take_pictures(page: Path, folder: Path, pictures: list[Picture] = PICTURES) -> list[Path]:
    """Writes dashboard_NAME.png of each, of at most MAX_PICTURE_BYTES; returns the paths. Raises OSError."""
    paths = []
    with open_browser() as browser:
        run, other = _two_runs(browser, page)
        for picture in pictures:
            address = picture.address.replace("RUN", run).replace("OTHER", other)
            tab = open_page(browser, page, address, picture.size, picture.theme)
            tab.wait_for_selector("#main[data-view]", timeout=TIMEOUT_MS)
            wait_until_drawn(tab)
            paths.append(write_atomic(folder / f"dashboard_{picture.name}.png", _smaller(tab.screenshot())))
            tab.context.close()
    return paths


def _two_runs(browser: Browser, page: Path) -> tuple[str, str]:
    """The ids of two runs of one experiment with curves; empty where there are none such."""
    tab = open_page(browser, page)
    tab.wait_for_selector("#main[data-view]", timeout=TIMEOUT_MS)
    script = """() => {
      const first = Results.runs().find((run) => run.curve);
      const runs = Results.runs().filter((run) => run.curve && run.source === first.source && run.task === first.task);
      return [runs[0], runs[runs.length - 1]].map((run) => (run ? run.id : ""));
    }"""
    first, last = tab.evaluate(script)
    tab.context.close()
    return first, last


def wait_until_drawn(tab: Page) -> None:
    """Returns when every figure in sight is drawn."""
    script = """() => [...document.querySelectorAll(".plot")].every((plot) => {
      const place = plot.getBoundingClientRect();
      return plot.dataset.drawn || place.top > innerHeight || place.bottom < 0;
    })"""
    tab.wait_for_function(script, timeout=TIMEOUT_MS)
    # plotly's last adjustment of its margins.
    tab.wait_for_timeout(150)


def _smaller(content: bytes) -> bytes:
    """A PNG with a palette of as many colours as fit."""
    for num_colors in (256, 128, 64, 32):
        smaller = palette_png(content, num_colors)
        if len(smaller) <= MAX_PICTURE_BYTES:
            break
    return smaller
