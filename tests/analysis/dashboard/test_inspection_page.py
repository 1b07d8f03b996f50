"""The page of an inspection in a headless Chromium: its plots, its tokens, its heads, and what axe-core says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from palimpsa.analysis.dashboard.headless import NARROW, WIDE
from palimpsa.analysis.dashboard.memory_page import write_page
from palimpsa.analysis.dashboard.privacy import Scrubber

COMMITTED = Path(__file__).resolve().parents[3] / "results/memory/demonstration"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    import plotly

    folder = tmp_path_factory.mktemp("inspection")
    shutil.copy(COMMITTED / "inspection.json", folder)
    shutil.copy(Path(plotly.__file__).parent / "package_data/plotly.min.js", folder)
    return write_page(folder, folder / "inspection.html", "plotly.min.js")


@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (NARROW, "dark")], ids=["1280px-light", "390px-dark"])
def test_heads_and_tokens_can_be_looked_at_and_axe_reports_no_serious_violation(size, theme, page_file, browser):
    from axe_core_python.sync_playwright import Axe

    errors: list[str] = []
    page: Any = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
    ).new_page()
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_selector("#recall .plotly")
    drawn = page.locator(".plot .plotly").count()
    assert drawn == page.locator(".plot:visible").count() >= 6
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    before = page.locator("#token-told").inner_text()
    page.locator("#tokens button").nth(3).press("Enter")
    assert page.locator("#tokens button").nth(3).get_attribute("aria-pressed") == "true"
    assert page.locator("#token-told").inner_text() != before
    address = page.evaluate("location.hash")
    page.select_option("#head", index=0)
    assert page.evaluate("location.hash") != address
    violations = [one for one in Axe().run(page)["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"][:150]) for one in violations] == []
    page.context.close()
    assert errors == []


def test_a_page_tells_no_secret_user_or_host(tmp_path):
    content = json.loads((COMMITTED / "inspection.json").read_text())
    content["model"]["name"] = "of_alice"
    content["model"]["label"] = "by alice at gpu-12"
    content["provenance"]["device"] = "gpu-12 of /home/alice, hf_0123456789abcdefXYZ"
    pieces = content["sequence"]["pieces"]
    pieces[0] = "alice"
    (tmp_path / "inspection.json").write_text(json.dumps(content))
    scrubber = Scrubber(["alice", "gpu-12"])
    page = write_page(tmp_path, tmp_path / "page.html", "plotly.min.js", scrubber).read_text(encoding="utf-8")
    for private in ("by alice", "gpu-12", "/home/alice", "hf_0123"):
        assert private not in page
    assert "[name] at [name]" in page
    # The text that was read is what is shown.
    assert '"alice"' in page
