"""Lays the dashboards' panels out on W&B, or lists offline runs: python scripts/create_workspace.py --offline."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.training.recording.command import create_workspace_main

if __name__ == "__main__":
    run_script(partial(create_workspace_main, sys.argv[1:]))
