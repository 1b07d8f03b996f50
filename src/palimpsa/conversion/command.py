"""The command line of scripts/convert.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.runs.schema import ResultError


def convert_main(arguments: Sequence[str]) -> int:
    """Exports or imports, and prints what was converted; 0, 2 for bad input, 1 where nothing can be written."""
    parser = argparse.ArgumentParser(
        prog="convert.py", description="Trainer checkpoints to Hugging Face folders, and back."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="a checkpoint to a new folder that AutoModelForCausalLM loads")
    export.add_argument("checkpoint", type=Path, help="a file, a folder of shards, or a run's directory")
    export.add_argument("folder", type=Path, help="to be made")
    export.add_argument("--tokenizer", help="where the model's tokenizer is, if no longer where it was")
    back = commands.add_parser("import", help="a folder to a new checkpoint")
    back.add_argument("folder", type=Path, help="of a model")
    back.add_argument("checkpoint", type=Path, help="the file to be made")
    options = parser.parse_args(arguments)
    # Here and not above: a wrong command line is told at once.
    from palimpsa.conversion.checkpoint import read_trained
    from palimpsa.conversion.folder import export_folder, import_folder

    try:
        if options.command == "export":
            lines = export_folder(read_trained(options.checkpoint), options.folder, tokenizer=options.tokenizer)
        else:
            lines = import_folder(options.folder, options.checkpoint)
    except (ConfigError, RunDirectoryError, ResultError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(*lines, sep="\n")
    return 0
