"""Times the operators, each checked against float64 first: python scripts/benchmark.py cases=[table] (-h: more)."""

import sys

from palimpsa.benchmark.run import benchmark_main

if __name__ == "__main__":
    sys.exit(benchmark_main(sys.argv[1:]))
