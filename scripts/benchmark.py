"""Times the operators, each checked against float64 first, or training: python scripts/benchmark.py -h shows how."""

import sys

from palimpsa.benchmark.run import benchmark_main
from palimpsa.config.process import run_script

if __name__ == "__main__":
    run_script(lambda: benchmark_main(sys.argv[1:]))
