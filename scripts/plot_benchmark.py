"""Draws the figures of a benchmark again from its CSV files. No torch, no GPU, no network."""

from palimpsa.config.process import run_script


def main() -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.build import build_benchmarks
    from palimpsa.analysis.redraw import redraw

    return redraw(
        __doc__, "results/kernels", "operators_*.csv and throughput_*.csv, or of steps_*.csv", build_benchmarks
    )


if __name__ == "__main__":
    run_script(main)
