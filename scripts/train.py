"""Trains one run, or with -m a sweep: python scripts/train.py model=mamba2 optimizer.lr=1e-3 seed=2."""

from palimpsa.sweeps.command import train_main

if __name__ == "__main__":
    train_main()
