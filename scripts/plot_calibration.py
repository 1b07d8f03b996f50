"""Draws the figures and the tables of calibration again from its CSV files. No torch, no GPU, no network."""

from palimpsa.config.process import run_script


def main() -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.calibration.build import build_calibration
    from palimpsa.analysis.redraw import redraw

    return redraw(__doc__, "results/calibration", "calibration.csv and reliability.csv", build_calibration)


if __name__ == "__main__":
    run_script(main)
