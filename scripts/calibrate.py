"""Says whether a memory's variance predicts its errors: python scripts/calibrate.py RUN, or calibrate.py train."""

import sys
from functools import partial

from palimpsa.config.process import run_script
from palimpsa.evaluation.calibration.command import calibrate_main, calibrate_trained, training_arguments


def main() -> int | None:
    """Exit codes: see `calibrate_main`; of `train` those of scripts/train.py."""
    if sys.argv[1:2] != ["train"] or {"-h", "--help"} & set(sys.argv):
        return calibrate_main(sys.argv[1:])
    # Here and not above: it imports Hydra.
    from palimpsa.sweeps.command import train_main

    sys.argv[1:], own = training_arguments(sys.argv[2:])
    train_main(then=partial(calibrate_trained, own))
    return None


if __name__ == "__main__":
    run_script(main)
