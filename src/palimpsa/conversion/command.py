"""The command line of scripts/convert.py."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.runs.exit_codes import terminated_as_interrupted
from palimpsa.runs.schema import ResultError


def convert_main(arguments: Sequence[str]) -> int:
    """Exports, imports or converts, and prints what it did.

    Returns:
        0, 2 for bad input, 1 where nothing can be written, 130 where it was interrupted.
    """
    try:
        with terminated_as_interrupted():
            lines = convert_as_told(arguments)
    except (ConfigError, RunDirectoryError, ResultError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    print(*lines, sep="\n")
    return 0


def convert_as_told(arguments: Sequence[str]) -> list[str]:
    """Exports, imports or converts, as a command line says; lines that say what it did.

    Raises:
        ConfigError, RunDirectoryError, ResultError, OSError: for what cannot be read, converted or written.
        SystemExit: for words that are no command line, which has been told on stderr.
    """
    options = _parser(argparse.ArgumentParser).parse_args(arguments)
    # Here and not above: a wrong command line is told at once.
    from transformers.utils.logging import disable_progress_bar

    from palimpsa.conversion.checkpoint import read_trained
    from palimpsa.conversion.folder import export_folder, import_folder

    # Bars of a moment, between which an error would stand.
    disable_progress_bar()
    if options.command == "export":
        return export_folder(read_trained(options.checkpoint), options.folder, tokenizer=options.tokenizer)
    if options.command == "import":
        return import_folder(options.folder, options.checkpoint)
    return _convert(options)


def metaplastic_words(options: str, named: str) -> list[str]:
    """Options of `convert.py metaplastic`, word by word, as another command line has them in one.

    Args:
        named: what they are there.

    Raises:
        ConfigError: for what are none, before anything is read.
    """
    try:
        words = shlex.split(options)
        _parser(_Teller).parse_args(["metaplastic", "SOURCE", "FOLDER", *words])
    except ValueError as error:
        raise ConfigError(
            f"{named}: got {options!r} ({error}), expected options of scripts/convert.py metaplastic"
        ) from error
    return words


class _Teller(argparse.ArgumentParser):
    """Raises what its parent prints before it ends the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(
        prog="convert.py",
        description="Trainer checkpoints to Hugging Face folders, and back; models to metaplastic ones.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="a checkpoint to a new folder that AutoModelForCausalLM loads")
    export.add_argument("checkpoint", type=Path, help="a file, a folder of shards, or a run's directory")
    export.add_argument("folder", type=Path, help="to be made")
    export.add_argument("--tokenizer", help="where the model's tokenizer is, if no longer where it was")
    back = commands.add_parser("import", help="a folder to a new checkpoint")
    back.add_argument("folder", type=Path, help="of a model")
    back.add_argument("checkpoint", type=Path, help="the file to be made")
    metaplastic = commands.add_parser("metaplastic", help="a Mamba-2, or a model w/o Meta, to a folder of a Palimpsa")
    metaplastic.add_argument(
        "source", type=Path, help="a folder of transformers', state-spaces' or ours, a run's directory, or a checkpoint"
    )
    metaplastic.add_argument("folder", type=Path, help="to be made")
    metaplastic.add_argument(
        "--form", default="vector", help="of the precisions: vector, grouped or scalar; none: as it is"
    )
    metaplastic.add_argument("--num-precisions", type=int, help="of a head, with --form grouped")
    metaplastic.add_argument(
        "--strength", type=float, help="of the precisions at first, in (0, 1]; chosen if not given"
    )
    metaplastic.add_argument("--seed", type=int, default=0, help="of the new matrices")
    metaplastic.add_argument("--name", help="of the model, in files")
    metaplastic.add_argument("--label", help="of the model, in tables and figures")
    metaplastic.add_argument("--norm-groups", type=int, help="of a Mamba-2's output norm, if not one a group of keys")
    metaplastic.add_argument("--tokenizer", help="where the model's tokenizer is, if not with it")
    return parser


def _convert(options: argparse.Namespace) -> list[str]:
    from palimpsa.conversion.metaplastic import Conversion, convert_metaplastic

    conversion = Conversion(
        form=options.form,
        num_precisions=options.num_precisions,
        strength=options.strength,
        seed=options.seed,
        name=options.name,
        label=options.label,
        tokenizer=options.tokenizer,
        num_norm_groups=options.norm_groups,
    )
    return convert_metaplastic(options.source, options.folder, conversion)
