"""The committed inspection: its picture and its page follow from it; what is damaged or hostile is told or shown."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from palimpsa.analysis.dashboard.memory_page import write_page
from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.memory.inspection_file import read_inspection, shown_head
from palimpsa.analysis.memory.picture import memory_picture
from palimpsa.runs.schema import ResultError

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "results/memory/demonstration"


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture
def changed(tmp_path):
    """A folder with the committed inspection, changed: `changed(lambda content: ...)`."""

    def change(edit) -> Path:
        content = json.loads((COMMITTED / "inspection.json").read_text())
        edit(content)
        (tmp_path / "inspection.json").write_text(json.dumps(content))
        return tmp_path

    return change


def test_the_committed_page_is_rebuilt_from_the_committed_inspection(tmp_path):
    shutil.copy(COMMITTED / "inspection.json", tmp_path)
    path = write_page(tmp_path, tmp_path / "page.html", "assets/plotly.min.js")
    page = path.read_text(encoding="utf-8")
    content = read_inspection(tmp_path)
    assert embedded(page) == content
    assert '<script src="assets/plotly.min.js"></script>' in page
    # Nothing is fetched: it opens from a disk without a network.
    assert re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page) == ["assets/plotly.min.js"]
    assert not re.search("https?://", page)
    assert not re.search(r"@[A-Z]+@", page)
    assert path.stat().st_size < 500_000


def test_the_committed_picture_follows_from_the_committed_inspection(tmp_path):
    picture, _ = save_figure(memory_picture(read_inspection(COMMITTED)), tmp_path / "inspection")
    assert picture.read_bytes() == (COMMITTED / "inspection.png").read_bytes()


def test_the_committed_example_is_light_and_shows_a_head_that_reads_what_it_stored():
    assert (COMMITTED / "inspection.json").stat().st_size <= 500_000
    assert (COMMITTED / "inspection.png").stat().st_size <= 300_000
    content = read_inspection(COMMITTED)
    assert content["attribution_error"] < 1e-5
    assert content["model"]["training"]["scale"] == "laptop"
    assert shown_head(content)["own_pair"]["share"] > 10 * content["queries"]["chance"]
    told = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    first = [head["own_pair"] for head in content["heads"] if head["layer"] == 0]
    for number in (*(one["share"] for one in first), content["queries"]["chance"]):
        assert f"{number:.0%}" in told
    # Of queries that read their own pair, all read the token after it.
    assert all(one["by_offset"][2] == one["share"] for one in first)


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "$\\frac{",
    "\x00\x1b[2J\n",
    "@DATA@",
    "&amp;",
]


def test_hostile_text_is_text(changed, tmp_path):
    def edit(content):
        content["sequence"]["pieces"][: len(HOSTILE)] = HOSTILE
        content["model"]["label"] = HOSTILE[0]

    folder = changed(edit)
    page = write_page(folder, tmp_path / "page.html", "plotly.min.js").read_text(encoding="utf-8")
    assert page.count("</script>") == 3
    assert "<script>alert" not in page
    assert "<img" not in page
    assert embedded(page)["sequence"]["pieces"][: len(HOSTILE)] == HOSTILE
    assert f"<title>{html.escape(f'Memory of {HOSTILE[0]}')}</title>" in page
    assert save_figure(memory_picture(read_inspection(folder)), tmp_path / "picture")[0].stat().st_size > 1000


def test_a_text_without_queries_and_a_model_without_importances_are_drawn(changed, tmp_path):
    """Longer than the lines of text that there is room for."""

    def edit(content):
        T = 299
        content["queries"], content["model"]["has_importance"] = None, False
        content["sequence"] |= {"kind": "text", "file": "a.txt", "num_cut": 7, "pieces": ["word "] * T}
        content["sequence"]["edges"] = [T * i // 64 for i in range(65)]
        for head in content["heads"]:
            del head["own_pair"]
            head["details"] |= {"importance": None, "consolidation": [1 / T] * T, "largest": [[]] * T}
            head["details"]["window"] = [None] * 64

    folder = changed(edit)
    figure = memory_picture(read_inspection(folder))
    texts = [axes.get_title(loc="left") for axes in figure.axes]
    assert any("48 earlier tokens are not drawn" in one for one in texts)
    assert save_figure(figure, tmp_path / "picture")[0].exists()
    assert write_page(folder, tmp_path / "page.html", "plotly.min.js").exists()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda c: c.update(version=0), "version 0, expected 'palimpsa memory inspection', version 1"),
        (lambda c: c.pop("model"), "model is missing, expected an object"),
        (lambda c: c["sequence"]["pieces"].append(3), "sequence.pieces is damaged, expected the text of each token"),
        (lambda c: c["sequence"]["edges"].pop(), "sequence.edges is damaged"),
        (lambda c: c["heads"][0]["details"]["window"].pop(), "heads.details is damaged, expected curves of 64 numbers"),
        (lambda c: c["heads"][0]["details"]["attribution"].pop(), "attribution is damaged, expected a lower triangle"),
        (lambda c: c["heads"][0]["details"].update(importance=None), "heads.details.importance is damaged"),
        (lambda c: c["heads"][0]["details"].pop("largest"), "KeyError('largest')"),
        (lambda c: c["shown"].update(layer=9), "shown is damaged, expected a head"),
        (lambda c: c["queries"]["labels"].pop(), "queries is damaged"),
        (lambda c: c.update(provenance=3), "provenance is 3, expected an object"),
    ],
)
def test_a_damaged_inspection_is_one_line_that_names_the_file_and_the_key(changed, edit, told):
    folder = changed(edit)
    with pytest.raises(ResultError) as caught:
        read_inspection(folder)
    assert str(caught.value).startswith(f"{folder / 'inspection.json'}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_inspection_says_what_makes_one(tmp_path):
    with pytest.raises(
        ResultError, match=r"inspection.json: not there, expected what scripts/inspect_memory.py writes$"
    ):
        write_page(tmp_path, tmp_path / "page.html", "plotly.min.js")
