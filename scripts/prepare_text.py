"""Makes token shards of text for pretraining: python scripts/prepare_text.py -h shows how."""

import sys

from palimpsa.config.process import run_script


def main() -> int:
    """Imports late: every process that tokenises imports this file."""
    from palimpsa.text.command import prepare_text_main

    return prepare_text_main(sys.argv[1:])


if __name__ == "__main__":
    run_script(main)
