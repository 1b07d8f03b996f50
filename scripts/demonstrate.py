"""Compares models that are trained on converted and unconverted: python scripts/demonstrate.py recall."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.finetuning.demonstrate_command import demonstrate_main

if __name__ == "__main__":
    run_script(partial(demonstrate_main, sys.argv[1:]))
