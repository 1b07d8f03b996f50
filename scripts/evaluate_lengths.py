"""Tests finished runs of associative recall at other lengths than they were trained on: no training."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.evaluation.lengths.command import evaluate_lengths_main

if __name__ == "__main__":
    run_script(partial(evaluate_lengths_main, sys.argv[1:]))
