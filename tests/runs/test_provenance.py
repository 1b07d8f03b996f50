"""Where a number came from."""

import sys

from palimpsa.runs.provenance import provenance


def test_a_revision_told_by_the_environment_comes_first(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("PALIMPSA_REVISION", "abc")
    for git in (lambda *_: None, lambda *_: "older"):
        monkeypatch.setattr("palimpsa.runs.provenance._git", git)
        found = provenance("cpu")
        assert (found["git_revision"], found["git_dirty"]) == ("abc", None)
    monkeypatch.setenv("PALIMPSA_REVISION", "")
    assert provenance("cpu")["git_revision"] == "older"
    monkeypatch.setattr("palimpsa.runs.provenance._git", lambda *_: None)
    assert provenance("cpu")["git_revision"] is None
