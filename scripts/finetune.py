"""Fine-tunes a trained model, converted first where it has no importances: python scripts/finetune.py SOURCE."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.finetuning.command import finetune_main

if __name__ == "__main__":
    run_script(partial(finetune_main, sys.argv[1:]))
