"""Checkpoints to Hugging Face folders and back, a Mamba-2 to a Palimpsa: scripts/convert.py export CHECKPOINT DIR."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.conversion.command import convert_main

if __name__ == "__main__":
    run_script(partial(convert_main, sys.argv[1:]))
