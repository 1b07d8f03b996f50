"""Trains one run, or with -m a sweep: python scripts/train.py model=mamba2 optimizer.lr=1e-3 seed=2."""

from palimpsa.config.process import run_script
from palimpsa.sweeps.command import train_main

if __name__ == "__main__":
    run_script(train_main)
