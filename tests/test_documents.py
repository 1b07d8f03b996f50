"""The pages that people read: links lead somewhere, each says its purpose and verdict first, the map is the tree's."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
# docs/models.md is written by scripts/describe_models.py.
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in ("LOG.md", "models.md"))
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
DOCUMENTS += [ROOT / "kernels/README.md"]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(path: Path) -> list[str]:
    """What the headings of a document can be linked by: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def broken_links(path: Path, text: str) -> list[str]:
    """The relative links of a document that lead to no tracked file or folder, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(text)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        place = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else None
        is_tracked = place is not None and any(file == place or file.startswith(f"{place}/") for file in TRACKED)
        if not (is_tracked and target.exists()) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert broken_links(path, path.read_text()) == []


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](absent.md) [b](results.md#no-heading) [c](results.md#figure-2) [d](../../etc) [e](https://x.org/y)"
    assert broken_links(ROOT / "docs/page.md", text) == ["absent.md", "results.md#no-heading", "../../etc"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_says_its_purpose_first_and_then_its_verdict(path):
    title, blank, verdict, *_ = path.read_text().splitlines()
    assert re.fullmatch(r"# \w+: .{20,}", title)
    assert blank == ""
    assert verdict.startswith("**Verdict: ")


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.read_text().splitlines()) <= 160
    for path in [*PAGES, ROOT / "docs/models.md", ROOT / "docs/LOG.md"]:
        assert f"(docs/{path.name})" in README.read_text()


def test_the_entries_of_the_log_have_verdicts_for_titles_newest_first():
    titles = re.findall(r"^## (.*)$", (ROOT / "docs/LOG.md").read_text(), re.MULTILINE)
    assert titles
    for title in titles:
        # A date, then a sentence.
        assert re.fullmatch(r"\d{4}-\d\d-\d\d: [A-Z0-9]\w*( \S+){4,}", title), title
    dates = [title[:10] for title in titles]
    assert dates == sorted(dates, reverse=True)


def test_the_readmes_map_has_every_room():
    """In the order of the dependencies: what imports a room comes after it."""
    rows = re.findall(r"^\| \[(\w+)/\]\(([\w/]+)\) \| [^|]+ \| ([^|]+) \|$", README.read_text(), re.MULTILINE)
    packages = {path.parent.name for path in (ROOT / "src/palimpsa").glob("*/__init__.py")}
    assert {name for name, _, _ in rows} == packages
    order = [name for name, _, _ in rows] + ["scripts"]
    for name, folder, importers in rows:
        assert folder == ("kernels" if name == "kernels" else f"src/palimpsa/{name}")
        assert all(order.index(importer) > order.index(name) for importer in importers.strip().split(", "))
