"""Evaluates a trained model, zero-shot and over long contexts: python scripts/evaluate.py -h shows how."""

import sys

from palimpsa.config.process import run_script


def main() -> int:
    """0, or the exit code of what went wrong: see `evaluate_main`."""
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.evaluation.command import evaluate_main

    return evaluate_main(sys.argv[1:])


if __name__ == "__main__":
    run_script(main)
