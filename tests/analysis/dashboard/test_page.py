"""The page in a headless Chromium: its views, its addresses, at two widths, and what axe-core says of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.analysis.dashboard.build import Dashboard
from palimpsa.analysis.dashboard.headless import NARROW, WIDE, wait_until_drawn
from palimpsa.analysis.dashboard.privacy import Scrubber
from palimpsa.runs.files import hold_lock

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = '<img src=x onerror="alert(1)"><b>bold</b> $\\frac{1}{2}$ &amp; =1+1'
VIEWS = (
    *("overview", "rates", "dynamics", "runs", "compare", "running", "speed"),
    *("language", "finetuning", "memory", "wandb"),
)


@pytest.fixture(scope="module")
def site(run_writer, write_offline_run, tmp_path_factory) -> Path:
    """A folder with a committed experiment, failed and unfinished runs, a sweep at work, W&B runs and benchmarks."""
    root = tmp_path_factory.mktemp("site")
    add_run = run_writer(root)
    for model, accuracy in (("palimpsa_d", 0.9), ("gla", 0.8)):
        for lr in (3e-3, 1e-2):
            for seed in (1, 2):
                add_run(model=model, lr=lr, seed=seed, validation=[accuracy, accuracy - 10 * lr])
    write_collected(collect([root / "runs"], root / "mqar"), root / "mqar")
    shutil.rmtree(root / "runs")
    add_run(model="palimpsa_m", seed=7, status="failed", test=[None, None])
    hostile = add_run(model="mamba2", seed=8)
    result = json.loads((hostile / "result.json").read_text())
    result["run"]["label"] = result["config"]["model"]["label"] = HOSTILE
    (hostile / "result.json").write_text(json.dumps(result))
    growing = add_run(model="gla", seed=9)
    config = json.loads((growing / "result.json").read_text())["config"]
    (growing / "config.json").write_text(json.dumps(config))
    for name in ("result.json", "history.csv"):
        (growing / name).unlink()
    write_offline_run(growing / "wandb/offline-run-20261130_000000-x", "x", ended=False, name=HOSTILE)
    (root / "runs/.progress").mkdir()
    (root / "runs/.progress/num_jobs").write_text("4")
    job = {"name": "gla lr 0.001 seed 9", "status": "running", "step": 30, "total": 120, "note": HOSTILE, "written": 1}
    (root / "runs/.progress/a.json").write_text(json.dumps(job))
    for name in ("kernels", "training", "illustrations"):
        shutil.copytree(ROOT / "results" / name, root / name)
    dashboard = Dashboard(root, root / "dashboard", [root / "runs"], [root / "runs"], scrubber=Scrubber())
    with hold_lock(growing / ".lock"):
        dashboard.build()
    return root


class Tab:
    """The page in a window of its own, which must print no error and ask for nothing but files."""

    def __init__(self, browser: Any, site: Path, size: tuple[int, int], theme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        self.page = self.context.new_page()
        self.address = (site / "dashboard/index.html").as_uri()
        self.errors: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else 0)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on(
            "request",
            lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else self.errors.append(asked.url),
        )

    def go(self, address: str = "") -> Any:
        """Opens an address as a colleague would, from nothing, and waits for what is in sight."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}{address}")
        view = address.removeprefix("#").partition("?")[0].partition("/")[0] or "overview"
        self.page.wait_for_selector(f'#main[data-view="{view}"]')
        wait_until_drawn(self.page)
        return self.page

    def num_drawn(self) -> int:
        return self.page.locator(".plot[data-drawn]").count()


@pytest.fixture
def tab(browser, site) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def make(size: tuple[int, int] = WIDE, theme: str = "light") -> Tab:
        tabs.append(Tab(browser, site, size, theme))
        return tabs[-1]

    yield make
    for one in tabs:
        assert one.errors == []
        one.context.close()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=lambda size: f"{size[0]}px")
def test_every_view_is_drawn_says_what_it_answers_and_fits(size, tab):
    shown = tab(size)
    with_figures = set()
    for view in VIEWS:
        page = shown.go(f"#{view}")
        assert page.locator("h1").count() == 1
        answer = page.locator(".answer").inner_text()
        assert answer.endswith((".", "!")), view
        assert "?" in answer, view
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        if shown.num_drawn():
            with_figures.add(view)
    assert with_figures >= {"overview", "rates", "dynamics", "speed"}


@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (NARROW, "dark")], ids=["1280px-light", "390px-dark"])
def test_axe_reports_no_serious_violation(size, theme, tab):
    from axe_core_python.sync_playwright import Axe

    shown = tab(size, theme)
    run = next(iter(shown.go().evaluate("Results.runs().filter((run) => run.curve).map((run) => run.id)")))
    found = {}
    for view in (*VIEWS, f"run/{run}"):
        page = shown.go(f"#{view}")
        # Tables that are folded away count too.
        page.evaluate("[...document.querySelectorAll('details')].slice(0, 2).forEach((one) => (one.open = true))")
        page.wait_for_timeout(50)
        for violation in Axe().run(page)["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = [(node["html"][:150], node["failureSummary"][:200]) for node in violation["nodes"][:2]]
                found[f"{view}: {violation['id']}"] = nodes
    assert found == {}


def test_few_figures_are_drawn_at_load_and_the_others_when_they_are_seen(tab):
    shown = tab()
    page = shown.go("#dynamics")
    at_first, all_of_them = shown.num_drawn(), page.locator(".plot").count()
    assert 1 <= at_first <= 3 < all_of_them
    page.locator(".plot").last.scroll_into_view_if_needed()
    wait_until_drawn(page)
    assert shown.num_drawn() > at_first


def test_a_dot_leads_to_its_run_and_the_table_of_the_figure_does_too(tab):
    shown = tab()
    page = shown.go()
    # plotly tells of a click on a dot by this event; its place on the screen is plotly's.
    page.evaluate(
        """() => {
          const plot = document.querySelector(".plot");
          const dots = plot.data.find((trace) => trace.mode === "markers");
          plot.emit("plotly_click", { points: [{ customdata: dots.customdata[0] }] });
        }"""
    )
    page.wait_for_selector('#main[data-view="run"]')
    wait_until_drawn(page)
    text = page.locator("main").inner_text()
    assert "f00dfeed" in text
    assert "optimizer.beta1" in text or "protocol hash" in text
    assert shown.num_drawn() >= 1
    page = shown.go()
    page.locator("figure details summary").first.click()
    page.locator("figure tbody a").first.click()
    page.wait_for_selector('#main[data-view="run"]')


def test_the_table_searches_filters_sorts_and_remembers_it_in_its_address(tab):
    shown = tab()
    page = shown.go("#runs")
    rows = page.locator("tbody tr")
    assert rows.count() == 11
    page.keyboard.press("/")
    page.keyboard.type("gla 0.01")
    assert rows.count() == 2
    # A seed and a rate are meant whole, however they are written.
    for words, count in (("seed 1", 4), ("lr 1e-2 seed 2", 2), ("seed 12", 0), ("seed", 11), ("gla 0.01", 2)):
        page.locator("#search").fill(words)
        assert rows.count() == count + (count == 0), words
    page.get_by_label("status").select_option("finished")
    page.get_by_role("button", name="seed").click()
    page.get_by_role("button", name="seed").click()
    assert page.locator("tbody tr td:nth-child(4)").all_inner_texts() == ["1", "2"]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("seed")
    address = page.evaluate("location.hash")
    assert address == "#runs?search=gla+0.01&sort=seed&status=finished"
    again = tab().go(address)
    assert again.locator("tbody tr").count() == 2
    assert again.locator("#search").input_value() == "gla 0.01"
    # Arrow keys go from row to row.
    again.locator("tbody a").first.focus()
    again.keyboard.press("ArrowDown")
    assert again.evaluate("document.activeElement === document.querySelectorAll('tbody a')[1]")
    again.keyboard.press("Enter")
    again.wait_for_selector('#main[data-view="run"]')


def test_the_number_of_failed_runs_leads_to_those_runs_and_no_others(tab):
    page = tab().go()
    page.locator(".facts a", has_text=re.compile("^1$")).first.click()
    page.wait_for_selector('#main[data-view="runs"]')
    assert page.locator("#choice-status").input_value() == "failed or diverged"
    assert page.locator("tbody tr").count() == 1
    assert page.locator("tbody .status").inner_text() == "failed"


def test_two_runs_are_picked_and_compared_by_what_differs(tab):
    shown = tab()
    page = shown.go("#runs?search=palimpsa-d&sort=lr")
    boxes = page.locator("tbody input[type=checkbox]")
    for place in (3, 0, 1):
        # Of three the first gives way.
        boxes.nth(place).check()
    assert [box.is_checked() for box in boxes.all()] == [True, True, False, False]
    page.get_by_role("link", name="Compare Palimpsa-D").click()
    page.wait_for_selector('#main[data-view="compare"]')
    wait_until_drawn(page)
    keys = page.locator("table").first.locator("tbody th").all_inner_texts()
    assert "seed" in keys
    assert not {"optimizer.lr", "model.name"} & set(keys)
    assert "Of both only runs.csv is left" in page.locator("main").inner_text()
    address = page.evaluate("location.hash")
    assert tab().go(address).locator("h2").first.inner_text() == page.locator("h2").first.inner_text()
    assert page.locator(".plot").first.evaluate("plot => plot.data.length") == 2


def test_what_is_known_of_one_run_alone_counts_as_no_difference(tab):
    shown = tab()
    page = shown.go("#runs")
    known = page.evaluate("Results.runs().map((run) => [run.source, run.label, run.id])")
    of_csv = next(run for source, label, run in known if (source, label) == ("mqar", "Palimpsa-D"))
    whole = next(run for source, label, run in known if label == "Palimpsa-M")
    text = shown.go(f"#compare/{of_csv}/{whole}").locator("main").inner_text()
    assert re.search(r"Of one of them only runs\.csv is left.* \d+ keys are known of one run alone", text)
    assert "(no such key)" not in text
    assert re.search(r"model\.name\s+palimpsa_d\s+palimpsa_m", text)


def test_a_field_of_the_map_lists_its_runs(tab):
    page = tab().go("#rates")
    page.locator("figure details summary").first.click()
    page.locator("figure tbody a").first.click()
    page.wait_for_selector('#main[data-view="run"]')


def test_single_heads_are_chosen_by_layer_and_head(tab):
    shown = tab()
    page = shown.go("#dynamics")
    page.get_by_label("Layer", exact=True).select_option("1")
    page.wait_for_function("location.hash.includes('layer=1')")
    page.get_by_label("Head", exact=True).select_option("0")
    page.wait_for_function("location.hash.includes('head=0')")
    page.wait_for_function("!document.querySelector('main section').innerHTML.includes('layer 0')")
    for figure in page.locator("main section .plot").all():
        assert "layer 1, head 0 ends at" in figure.get_attribute("aria-label")


def test_labels_with_html_and_formulas_are_shown_as_they_are(tab):
    shown = tab()
    for view in ("", "#runs", "#running", "#wandb", "#rates"):
        page = shown.go(view)
        assert page.locator("main b, main img[src=x]").count() == 0
    page = shown.go("#runs?search=frac")
    assert page.locator("tbody a").inner_text() == HOSTILE
    page.locator("tbody a").click()
    page.wait_for_selector('#main[data-view="run"]')
    wait_until_drawn(page)
    # In plotly's texts too, whose own markup they would be.
    names = page.evaluate(
        "[...document.querySelectorAll('.plot')].flatMap((plot) => (plot.data || []).map((one) => one.name))"
    )
    assert names[0].startswith("&lt;img src=x")
    assert page.locator("main .plot b, main .plot img, main .plot a").count() == 0


def test_the_theme_is_switched_and_figures_with_it(tab):
    shown = tab(theme="light")
    page = shown.go()
    before = page.evaluate("document.querySelector('.plot').layout.font.color")
    page.get_by_role("button", name="Dark").click()
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.wait_for_function(f"document.querySelector('.plot').layout.font.color !== '{before}'")
    page.reload()
    page.wait_for_selector("#main[data-view]")
    assert page.get_attribute("html", "data-theme") == "dark"
    dark = tab(theme="dark").go()
    assert dark.get_attribute("#theme", "aria-pressed") == "true"


def test_running_shows_bars_reasons_and_growing_curves(tab):
    shown = tab(NARROW)
    page = shown.go("#running")
    assert page.get_by_role("progressbar").count() == 2
    assert page.locator("progress").last.evaluate("bar => bar.value / bar.max") == 0.25
    text = page.locator("main").inner_text()
    assert "RuntimeError: the loss is nan" in text
    assert page.locator(".plot").count() == 1


def test_an_address_of_a_run_that_is_gone_says_so(tab):
    page = tab().go("#run/000000000000")
    assert page.locator("h1").inner_text() == "No such run"
    assert tab().go("#nothing").locator("h1").inner_text() == "No such view"


def test_choices_are_made_by_the_arrow_keys_one_after_another_where_they_stand(tab):
    page = tab(NARROW).go("#dynamics")
    layer = page.get_by_label("Layer", exact=True)
    layer.scroll_into_view_if_needed()
    layer.focus()
    top = page.evaluate("scrollY")
    assert top > 0
    for chosen in ("0", "1"):
        page.keyboard.press("ArrowDown")
        page.wait_for_function(f"location.hash.includes('layer={chosen}')")
        page.wait_for_function("document.activeElement.id === 'choice-layer'")
    assert page.evaluate("scrollY") == pytest.approx(top, abs=200)


def test_an_address_that_asks_for_what_is_not_there_says_so_or_shows_all(tab):
    page = tab().go("#dynamics?layer=99&head=0")
    assert page.get_by_label("Layer", exact=True).input_value() == "all"
    assert page.locator("figure", has_text="of each head").count() > 0
    page = tab().go("#runs?status=exploded")
    assert page.locator("#choice-status option:checked").inner_text() == "exploded (no run)"
    assert "a run that the page does not have" in tab().go("#compare/aaa/bbb").locator("main").inner_text()


def test_an_open_page_takes_in_what_is_built_again(browser, run_writer, tmp_path):
    """As make dashboard WATCH=1 does it."""
    add_run = run_writer(tmp_path)
    add_run(seed=1)
    dashboard = Dashboard(tmp_path, tmp_path / "dashboard", [tmp_path / "runs"], [], watched=True, scrubber=Scrubber())
    dashboard.build()
    own = Tab(browser, tmp_path, WIDE)
    page = own.go("#runs")
    assert page.locator("tbody tr").count() == 1
    add_run(seed=2)
    dashboard.build()
    page.wait_for_function("document.querySelectorAll('tbody tr').length === 2")
    # Who types or reads meanwhile goes on where they were.
    page.locator("#search").press_sequentially("palimpsa")
    page.keyboard.press("Home")
    add_run(seed=3)
    dashboard.build()
    page.wait_for_function("document.querySelectorAll('tbody tr').length === 3")
    assert page.evaluate("[document.activeElement.id, document.activeElement.selectionStart]") == ["search", 0]
    page.keyboard.press("End")
    page.keyboard.type("-d")
    assert page.locator("#search").input_value() == "palimpsa-d"
    page.locator("tbody a", has_text="Palimpsa").nth(1).focus()
    add_run(seed=4)
    dashboard.build()
    page.wait_for_function("document.querySelectorAll('tbody tr').length === 4")
    assert page.evaluate("document.activeElement.tagName") == "A"
    page = own.go("#overview")
    page.locator("summary").first.click()
    add_run(seed=5)
    dashboard.build()
    page.wait_for_function("Results.runs().length === 5")
    page.wait_for_function("document.querySelector('main details').open")
    # A sweep that was killed after some of its runs.
    (tmp_path / "runs/.progress").mkdir()
    (tmp_path / "runs/.progress/num_jobs").write_text("9")
    dashboard.build()
    assert "No run is at work now. A sweep that was killed goes on" in own.go("#running").locator("main").inner_text()
    dashboard.watched = False
    dashboard.build()
    page.wait_for_function("document.getElementById('state').textContent === 'no longer followed'")
    assert own.errors == []
    own.context.close()


def test_a_table_that_was_unfolded_stays_so_where_it_is_drawn_anew(tab):
    counts = (
        tab()
        .go("#runs")
        .evaluate(
            """() => {
          const rows = Array.from({ length: 120 }, (_, i) => ({ a: i }));
          const draw = () => sortableTable([{ name: "a", key: "a" }], rows, { caption: "x" });
          const first = draw();
          const folded = first.querySelectorAll("tbody tr").length;
          first.querySelector(".more").click();
          return [folded, ...[first, draw()].map((table) => table.querySelectorAll("tbody tr").length)];
        }"""
        )
    )
    assert counts == [100, 120, 120]


def test_a_label_and_a_reason_without_a_blank_make_no_page_wider(browser, run_writer, tmp_path):
    add_run = run_writer(tmp_path)
    add_run()
    failed = add_run(seed=2, status="failed", test=[None, None])
    for file in (tmp_path / "runs").rglob("result.json"):
        result = json.loads(file.read_text())
        result["run"]["label"] = result["config"]["model"]["label"] = "W" * 1000
        if file.parent == failed:
            result["error"] = "E" * 1000
        file.write_text(json.dumps(result))
    Dashboard(tmp_path, tmp_path / "dashboard", [tmp_path / "runs"], [], scrubber=Scrubber()).build()
    own = Tab(browser, tmp_path, NARROW)
    for view in ("overview", "rates", "dynamics", "runs", "compare", "running"):
        page = own.go(f"#{view}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    own.context.close()


def test_500_runs_draw_few_figures_at_load(browser, tmp_path):
    """How long that takes is for scripts/dashboard.py --benchmark 500 to say, on a machine with nothing else to do."""
    from palimpsa.analysis.dashboard.headless import write_many_runs

    results = write_many_runs(ROOT / "results", tmp_path / "results", 500)
    Dashboard(results, results / "dashboard", [], [], scrubber=Scrubber()).build()
    own = Tab(browser, results, WIDE)
    page = own.go()
    assert page.evaluate("Results.runs().length") == 500
    assert 1 <= own.num_drawn() <= 2
    page = own.go("#runs")
    assert page.locator("tbody tr").count() == 100
    assert own.errors == []
    own.context.close()


def test_a_page_of_nothing_begins_with_what_is_missing(browser, tmp_path):
    Dashboard(tmp_path, tmp_path / "dashboard", [tmp_path / "runs"], [], scrubber=Scrubber()).build()
    own = Tab(browser, tmp_path, WIDE)
    page = own.go()
    assert page.evaluate("document.querySelector('h1').nextElementSibling.matches('details.problems[open]')")
    assert page.locator("details.problems").count() == 1
    assert page.get_by_text("make mqar").is_visible()
    # A checkpoint to inspect is one that a run has kept.
    assert "trainer.keep_final=true" in own.go("#memory").locator("main").inner_text()
    assert own.errors == []
    own.context.close()


def test_what_is_missing_is_folded_where_there_are_experiments(tab):
    page = tab().go()
    assert page.locator("details.problems").count() == 1
    assert page.locator("details.problems[open]").count() == 0


def test_a_run_at_work_without_a_job_or_a_curve_is_told_truly(browser, run_writer, tmp_path):
    add_run = run_writer(tmp_path)
    folder = add_run()
    config = json.loads((folder / "result.json").read_text())["config"]
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("result.json", "history.csv"):
        (folder / name).rename(tmp_path / name)
    (tmp_path / "runs/.progress").mkdir()
    (tmp_path / "runs/.progress/num_jobs").write_text("9")
    dashboard = Dashboard(tmp_path, tmp_path / "dashboard", [tmp_path / "runs"], [], scrubber=Scrubber())
    own = Tab(browser, tmp_path, WIDE)
    with hold_lock(folder / ".lock"):
        dashboard.build()
        text = own.go("#running").locator("main").inner_text()
        assert "No run is at work now" not in text
        assert "A run's curve comes from its history.csv" in text
        assert "writes none" not in text
        (tmp_path / "history.csv").rename(folder / "history.csv")
        dashboard.build()
        assert own.go("#running").locator(".plot").count() == 1
    dashboard.build()
    assert "No run is at work now" in own.go("#running").locator("main").inner_text()
    own.context.close()


@pytest.mark.parametrize("view", ["rates", "dynamics"])
def test_an_address_of_an_experiment_that_is_gone_says_so_and_lists_the_others(view, tab):
    page = tab().go(f"#{view}/nosuch")
    assert page.locator("h1").inner_text() == "No such experiment"
    assert page.locator(".plot").count() == 0
    page.locator("main li a").first.click()
    page.wait_for_selector("main .plot")
    assert page.evaluate("Address.read().parts[0] === Results.experiments()[0].id")


FOCUS = """() => {
  const node = document.activeElement;
  return [node.tagName, node.textContent, node.matches(":focus-visible")];
}"""


def test_the_focus_goes_to_the_heading_of_a_view_that_was_chosen(tab):
    page = tab().go("#runs")
    assert page.evaluate(FOCUS)[0] == "BODY"
    # By the mouse, without a frame around the heading.
    page.get_by_role("link", name="Speed").click()
    page.wait_for_selector('#main[data-view="speed"]')
    assert page.evaluate(FOCUS) == ["H1", "Speed", False]
    page.get_by_role("link", name="Runs", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('#main[data-view="runs"]')
    assert page.evaluate(FOCUS)[:2] == ["H1", "All runs"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"


def test_back_and_forward_lead_to_the_place_that_was_left(tab):
    page = tab(NARROW).go()
    page.locator("figure details summary").first.click()
    chosen = page.locator("figure tbody a").nth(5)
    chosen.scroll_into_view_if_needed()
    top = page.evaluate("scrollY")
    assert top > 300
    run = chosen.get_attribute("href")
    chosen.click()
    page.wait_for_selector('#main[data-view="run"]')
    assert page.evaluate("scrollY") == 0
    assert page.evaluate(FOCUS)[0] == "H1"
    page.evaluate("scrollTo(0, 400)")
    page.evaluate("history.back()")
    page.wait_for_selector('#main[data-view="overview"]')
    assert page.evaluate("scrollY") == pytest.approx(top, abs=2)
    # The table is unfolded again, and the link that was chosen has the focus.
    assert page.evaluate("document.activeElement.getAttribute('href')") == run
    page.evaluate("history.forward()")
    page.wait_for_selector('#main[data-view="run"]')
    assert page.evaluate("scrollY") == pytest.approx(400, abs=2)
    # A page that is loaded again is where it was, and takes no focus.
    page.reload()
    page.wait_for_selector('#main[data-view="run"]')
    assert page.evaluate("scrollY") == pytest.approx(400, abs=2)
    assert page.evaluate(FOCUS)[0] == "BODY"


def test_new_data_and_another_page_between_leave_the_place_as_it_was(browser, run_writer, tmp_path):
    add_run = run_writer(tmp_path)
    add_run(seed=1)
    dashboard = Dashboard(tmp_path, tmp_path / "dashboard", [tmp_path / "runs"], [], watched=True, scrubber=Scrubber())
    dashboard.build()
    own = Tab(browser, tmp_path, NARROW)
    page = own.go("#runs")
    page.get_by_role("link", name="Overview").click()
    page.wait_for_selector('#main[data-view="overview"]')
    page.wait_for_function("document.getElementById('state').textContent.startsWith('following')")
    page.evaluate("scrollTo(0, 300)")
    # What the header says may make it higher.
    top = page.evaluate("main.getBoundingClientRect().top")
    add_run(seed=2)
    dashboard.build()
    page.wait_for_function("document.querySelector('.facts a').textContent === '2'")
    assert page.evaluate("document.activeElement.tagName") == "H1"
    assert page.evaluate("main.getBoundingClientRect().top") == pytest.approx(top, abs=2)
    page.goto("about:blank")
    page.go_back()
    page.wait_for_selector('#main[data-view="overview"]')
    assert page.evaluate("main.getBoundingClientRect().top") == pytest.approx(top, abs=2)
    own.context.close()


def test_a_search_and_a_link_to_the_shown_address_keep_the_place_to_go_back_to(tab):
    page = tab((390, 400)).go("#runs")
    page.locator("#search").fill("seed")
    address = page.evaluate("location.hash")
    page.locator("tbody a").last.scroll_into_view_if_needed()
    # The link of the address that is shown.
    page.evaluate("document.querySelector('[data-view=runs]').href = location.href")
    page.evaluate("document.querySelector('[data-view=runs]').click()")
    tops = page.evaluate("[scrollY, document.querySelector('.scroll').scrollTop]")
    assert tops[0] > 0
    assert tops[1] > 0
    page.locator("tbody a").last.click()
    page.wait_for_selector('#main[data-view="run"]')
    page.evaluate("history.back()")
    page.wait_for_selector('#main[data-view="runs"]')
    assert page.evaluate("location.hash") == address
    assert page.evaluate("[scrollY, document.querySelector('.scroll').scrollTop]") == pytest.approx(tops, abs=2)


def test_axes_count_in_one_notation_which_agrees_with_their_title(tab):
    page = tab().go("#speed")
    page.locator("figure", has_text="Prefill throughput").first.scroll_into_view_if_needed()
    wait_until_drawn(page)
    ticks = page.evaluate(
        """() => [...document.querySelectorAll("figure")]
          .filter((one) => one.querySelector(".ytitle")?.textContent === "1,000 tokens a second")
          .flatMap((one) => [...one.querySelectorAll(".ytick")].map((tick) => tick.textContent))"""
    )
    assert len(ticks) > 1
    assert all(re.fullmatch(r"[\d,.]+", tick) for tick in ticks), ticks
    # A window of many decades is told in powers of ten, at 1,000 as at a trillion.
    page.evaluate(
        """() => {
          const line = { label: "a", look: Experiments.palette(0), x: [1, 2, 3], y: [1e3, 1e9, 1e15] };
          const [x, y] = [{ title: "step", scale: "linear" }, { title: "tokens", scale: "log" }];
          document.getElementById("main").prepend(Plots.lineFigure({ title: "windows", x, y, lines: [line] }));
          scrollTo(0, 0);
        }"""
    )
    wait_until_drawn(page)
    ticks = page.locator(".plot").first.locator(".ytick").all_text_contents()
    assert len(ticks) > 3
    assert all(re.fullmatch(r"10\S*", tick.replace("\u200b", "")) for tick in ticks), ticks


@pytest.mark.parametrize("view", ["overview", "speed"])
def test_every_table_of_a_view_has_a_name_of_its_own(view, tab):
    page = tab().go(f"#{view}")
    page.evaluate("[...document.querySelectorAll('details')].forEach((one) => (one.open = true))")
    page.wait_for_timeout(50)
    names = page.locator("[role=region]").evaluate_all("nodes => nodes.map((node) => node.getAttribute('aria-label'))")
    assert names
    assert sorted(set(names)) == sorted(names)
