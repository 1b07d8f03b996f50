"""Measures a metaplastic model from strength 0, without importances, to 1: python scripts/vary_strength.py RUN."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.finetuning.strengths_command import vary_strength_main

if __name__ == "__main__":
    run_script(partial(vary_strength_main, sys.argv[1:]))
