"""Pretrains a language model and shows what came of it: its loss curve, its perplexity and a sample.

Takes the command line of train.py: python scripts/pretrain.py task=commonsense model=lm/palimpsa_d_tiny.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from palimpsa.config.process import run_script
from palimpsa.sweeps.command import train_main


def show(configs: Sequence[dict[str, Any]], code: int) -> int:
    """Prints what came of each run that is finished.

    Args:
        configs: of the runs.
        code: 0, or 1 where some are not finished.
    """
    # Here and not above: a launcher's workers import this file.
    from palimpsa.evaluation.pretraining import is_pretrained, show_pretraining
    from palimpsa.training.distributed import is_first_rank

    if not is_first_rank():
        return code
    for config in configs:
        folder = Path(config["run_dir"])
        if config["task"]["kind"] == "commonsense" and is_pretrained(folder):
            print(*show_pretraining(folder), sep="\n", flush=True)
    return code


if __name__ == "__main__":
    run_script(partial(train_main, then=show))
