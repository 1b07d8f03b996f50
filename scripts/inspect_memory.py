"""Shows what a trained model's memory kept of a sequence: python scripts/inspect_memory.py RUN --task mqar."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.evaluation.memory.command import inspect_memory_main

if __name__ == "__main__":
    run_script(partial(inspect_memory_main, sys.argv[1:]))
