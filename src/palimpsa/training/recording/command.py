"""The command line of scripts/create_workspace.py: lays panels out online, or lists what is to be uploaded first."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.errors import ConfigError
from palimpsa.config.private import hide_private
from palimpsa.config.process import plain_console
from palimpsa.runs.exit_codes import exit_code
from palimpsa.runs.files import write_atomic
from palimpsa.runs.offline_wandb import find_offline_runs
from palimpsa.training.recording.workspace import build_workspace, workspace_spec

USAGE = """usage: create_workspace.py --entity NAME [--project palimpsa] [--name TEXT] [--layers 2]
       create_workspace.py --spec FILE [--layers 2]      the same as JSON, without a network
       create_workspace.py --offline [FOLDER]            runs that were recorded offline, and the line that uploads each

Online it takes an account: wandb login. docs/sweeps.md says what is recorded."""


def create_workspace_main(arguments: Sequence[str]) -> int:
    """Makes a workspace of W&B's, or lists offline runs.

    Returns:
        0; 1 where a file cannot be written, or W&B does not take the workspace; 2 where the command line is wrong; 130
        where it was interrupted.
    """
    usage = USAGE.removeprefix("usage: ")
    parser = argparse.ArgumentParser(prog="create_workspace.py", usage=usage, allow_abbrev=False)
    parser.add_argument("--entity")
    parser.add_argument("--project", default="palimpsa")
    parser.add_argument("--name", default="Palimpsa")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--offline", type=Path, nargs="?", const=Path("results"))
    options = parser.parse_args(arguments)
    return exit_code(lambda: _carry_out(options), interrupted="nothing is online that was not before")


def _carry_out(options: argparse.Namespace) -> int:
    console = plain_console(soft_wrap=True)
    if options.offline is not None:
        return _list_offline(options.offline)
    workspace = build_workspace(options.entity or "entity", options.project, options.name, options.layers)
    if options.spec is not None:
        text = json.dumps(workspace_spec(workspace), indent=1)
        console.print(str(write_atomic(options.spec, text + "\n")))
        return 0
    if options.entity is None:
        raise ConfigError("--entity: got none, expected the W&B user or team whose project it is")
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise ConfigError(f"WANDB_MODE: got {os.environ['WANDB_MODE']!r}, expected online, or --spec FILE")
    try:
        workspace.save()
    except Exception as error:
        # Whatever the server or the client did not like, it is one line here.
        told = hide_private(" ".join(str(error).split()))
        raise OSError(f"W&B did not take the workspace ({type(error).__name__}: {told})") from error
    console.print(workspace.url)
    return 0


def _list_offline(folder: Path) -> int:
    if not folder.is_dir():
        raise ConfigError(f"--offline: got {str(folder)!r}, expected a folder of results")
    console = plain_console(soft_wrap=True)
    runs = find_offline_runs(folder)
    waiting = [run for run in runs if not run.is_synced]
    console.print(f"{len(runs)} offline runs below {folder}, {len(waiting)} of them not uploaded yet")
    for run in waiting:
        console.print(run.sync_line)
    return 0
