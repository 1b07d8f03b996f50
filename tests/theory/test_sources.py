"""Which source files a module's numbers follow from."""

from __future__ import annotations

import pytest

from palimpsa.theory import sources
from palimpsa.theory.sources import source_digests

FILES = {
    "kernels/__init__.py": "",
    "kernels/reference.py": "from .checks import check\n",
    "kernels/checks.py": "",
    "theory/__init__.py": "",
    "theory/numbers.py": "from palimpsa.theory import top\nfrom . import late\nimport palimpsa.kernels.reference\n",
    "theory/top.py": "import palimpsa.theory.dotted\nfrom palimpsa.theory import numbers\n",
    "theory/late.py": "def value():\n    from palimpsa.theory.inner import value\n",
    "theory/inner.py": "",
    "theory/dotted.py": "",
    "theory/other.py": "",
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A package of this name with the FILES, none of which is imported."""
    for name, text in FILES.items():
        path = tmp_path / "palimpsa" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "palimpsa")
    return tmp_path / "palimpsa"


def test_sources_are_those_that_are_imported_anywhere(tree):
    found = source_digests("palimpsa.theory.numbers")
    names = ["numbers", "top", "late", "inner", "dotted"]
    assert list(found) == sorted(["kernels/reference.py", *(f"theory/{name}.py" for name in names)])


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_change_is_seen_where_it_makes_a_difference(tree, name):
    before = source_digests("palimpsa.theory.numbers")
    path = tree / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert source_digests("palimpsa.theory.numbers") == before
    path.write_text(f"{FILES[name]}x = 1\n", encoding="utf-8")
    after = source_digests("palimpsa.theory.numbers")
    assert {one for one in after if after[one] != before[one]} == {name} & set(before)


def test_the_capacities_follow_from_the_rules_and_the_reference():
    found = source_digests("palimpsa.theory.capacity")
    assert {"theory/capacity.py", "theory/special_cases.py", "kernels/reference.py"} == set(found)
