"""Times the operators, each checked against float64 first, or training: python scripts/benchmark.py -h shows how."""

import sys

from palimpsa.benchmark.run import benchmark_main

if __name__ == "__main__":
    sys.exit(benchmark_main(sys.argv[1:]))
