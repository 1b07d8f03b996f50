"""Who is named for what: this repository's contributors for the software, the paper's authors for the paper."""

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTRIBUTORS = "The contributors of this repository"
# Other people, with a repository of that name. In two parts, or this file would be found.
OTHERS = " ".join(["Palimpsa", "authors"])


@pytest.fixture
def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_file_has_what_its_format_requires(citation):
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "message", "title"} <= citation.keys()
    assert {"authors", "title", "type"} <= citation["preferred-citation"].keys()
    assert citation["type"] == "software"
    # A version of numbers alone would be read as one.
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_paper_is_cited_by_its_authors(citation):
    paper = citation["preferred-citation"]
    assert paper["title"] == "Learning to Remember, Learn, and Forget in Attention-Based Models"
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Bonnet", "Lohoff", "Finkbeiner", "Skhikerujah", "Neftci"]
    assert paper["identifiers"][0]["value"] == "arXiv:2602.09075"
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert "ICML" in paper["collection-title"]
    assert paper["year"] == 2026


def test_the_software_is_credited_to_the_contributors_of_this_repository(citation):
    assert citation["authors"] == [{"name": CONTRIBUTORS}]
    assert PROJECT["authors"] == [{"name": CONTRIBUTORS}]
    assert f"Copyright (c) 2026 {CONTRIBUTORS}\n" in (ROOT / "LICENSE").read_text()


def test_no_file_names_the_papers_authors_as_those_of_this_repository():
    found = subprocess.run(
        ["git", "grep", "--ignore-case", "--files-with-matches", "-I", OTHERS], cwd=ROOT, capture_output=True, text=True
    )
    # 1: nothing found.
    assert (found.returncode, found.stdout) == (1, "")
