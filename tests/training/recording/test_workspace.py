"""The workspace's spec, built without a network: its panels show what runs record; and the list of offline runs."""

import json
import re
from pathlib import Path

import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.training.recording.command import create_workspace_main
from palimpsa.training.recording.workspace import build_workspace, sections, workspace_spec


def create(*arguments: object) -> int:
    return create_workspace_main([str(one) for one in arguments])


def test_every_panel_is_in_the_spec_that_is_sent(tmp_path, capsys):
    spec_file = tmp_path / "spec.json"
    assert create("--spec", spec_file, "--layers", 3) == 0
    assert str(spec_file) in capsys.readouterr().out.replace("\n", "")
    spec = json.loads(spec_file.read_text())
    laid_out = {one["name"]: one["panels"] for one in spec["section"]["panelBankConfig"]["sections"]}
    wanted = sections(3)
    assert list(laid_out) == list(wanted)
    for name, panels in wanted.items():
        shown = [one["config"] for one in laid_out[name]]
        assert [one["chartTitle"] for one in shown] == [panel.title for panel in panels]
        assert [one.get("metricRegex") for one in shown] == [panel.regex for panel in panels]
        assert [tuple(one.get("metrics") or ()) for one in shown] == [panel.metrics for panel in panels]
    (run_set,) = spec["section"]["runSets"]
    grouped = [(one["section"], one["name"]) for one in run_set["grouping"]]
    assert grouped == [("config", f"{key.replace('.', '.value.', 1)}") for key in ("model.name",)] + [
        ("config", "variant.value") if ("config", "variant.value") in grouped else ("config", "variant"),
        ("config", "optimizer.value.lr"),
    ]


def test_what_runs_record_has_a_panel(tiny_config, tiny_overrides):
    """Every metric of a run's history is in a panel, and every panel that is of recall or memory has a metric."""
    from palimpsa.training.run import run

    config = tiny_config()
    run(config)
    with (Path(config.run_dir) / "history.csv").open() as file:
        columns = file.readline().strip().split(",")
    panels = [panel for one in sections(2).values() for panel in one]
    known = {"step", "stage", "tokens", "time"}

    def shows(panel, name: str) -> bool:
        return name in panel.metrics or (panel.regex is not None and re.fullmatch(panel.regex, name) is not None)

    without = [name for name in columns if name not in known and not any(shows(panel, name) for panel in panels)]
    assert without == []
    for name in ("Recall", "Memory window N_t, tokens", "Metaplasticity ratio"):
        for panel in sections(2)[name]:
            assert any(shows(panel, column) for column in columns), panel


def test_a_workspace_is_of_somebody_online(capsys, monkeypatch):
    assert create("--layers", 2) == 2
    assert "--entity: got none, expected the W&B user or team" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert create("--entity", "someone") == 2
    assert "WANDB_MODE: got 'offline', expected online, or --spec FILE" in capsys.readouterr().err
    assert create("--entity", "someone", "--layers", 0) == 2
    assert "--layers: got 0, expected >= 1" in capsys.readouterr().err


def test_a_word_that_is_no_number_is_refused_with_the_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        create("--layers", "many")
    error = capsys.readouterr().err
    assert error.startswith("usage: create_workspace.py --entity NAME")
    assert error.endswith("argument --layers: invalid int value: 'many'\n")


def test_what_the_server_does_not_take_is_one_line(capsys, monkeypatch):
    import wandb_workspaces.workspaces as workspaces

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "SENTINEL" + "0" * 32)

    def refuse(workspace):
        raise RuntimeError("no such\nentity for SENTINEL" + "0" * 32)

    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    assert create("--entity", "nobody") == 1
    error = capsys.readouterr().err
    assert error == "error: W&B did not take the workspace (RuntimeError: no such entity for [hidden])\n"


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"pip install 'palimpsa\[workspaces\]'"):
        build_workspace("e", "p", "n", 2)


def test_runs_of_one_model_and_rate_are_grouped():
    spec = workspace_spec(build_workspace("e", "p", "n", 1))
    assert spec["section"]["runSets"][0]["grouping"][-1]["name"] == "optimizer.value.lr"


def test_offline_runs_are_listed_with_their_line(tiny_config, capsys):
    from palimpsa.training.run import run

    config = tiny_config("logger=wandb")
    run(config)
    capsys.readouterr()
    assert create("--offline", config.results_dir) == 0
    first, line = capsys.readouterr().out.splitlines()
    assert first.startswith("1 offline runs below ")
    (folder,) = Path(config.run_dir).glob("wandb/offline-run-*")
    assert line == f"wandb sync {folder}"
    assert create("--offline", f"{config.results_dir}/nowhere") == 2
