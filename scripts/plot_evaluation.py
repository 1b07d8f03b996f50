"""Draws the figures and the table of an evaluation again from evaluation.csv. No torch, no GPU, no network."""

from palimpsa.config.process import run_script


def main() -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.language.evaluation_report import build_evaluation
    from palimpsa.analysis.redraw import redraw

    return redraw(__doc__, "results/commonsense", "evaluation.csv", build_evaluation)


if __name__ == "__main__":
    run_script(main)
