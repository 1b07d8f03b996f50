"""Draws the figures and the table of fine-tuning again from its CSV files. No torch, no GPU, no network."""

from palimpsa.config.process import run_script


def main() -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.finetuning.build import build_finetuning
    from palimpsa.analysis.redraw import redraw

    return redraw(__doc__, "results/finetuning", "pairs.csv and strength.csv", build_finetuning)


if __name__ == "__main__":
    run_script(main)
