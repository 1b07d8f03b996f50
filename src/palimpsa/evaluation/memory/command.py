"""The command line of scripts/inspect_memory.py: a folder with inspection.json, a picture and a page."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import is_file_name
from palimpsa.config.process import plain_console
from palimpsa.runs.exit_codes import exit_code

RESULTS = Path("results/memory")
# Beside the folders of inspections, which share it: five megabytes.
PLOTLY = "plotly.min.js"
DESCRIPTION = """What did the memory of a trained model keep of a sequence? Writes inspection.json, inspection.png and
inspection.html to results/memory/NAME. docs/memory.md says how to read them."""


def inspect_memory_main(arguments: Sequence[str]) -> int:
    """Inspects a model and writes what was found, whole or not at all.

    Returns:
        0; 1 where a file cannot be written; 2 where the command line, the model or the text are wrong; 130 where it was
        interrupted, and nothing is written.
    """
    parser = argparse.ArgumentParser(prog="inspect_memory.py", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", type=Path, help="a run's directory, a checkpoint, or a folder of scripts/convert.py"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--text", type=Path, metavar="FILE", help="a text of UTF-8, for a model that has a tokenizer")
    what.add_argument("--task", metavar="KIND", help="a test context of the task that the run was trained on")
    parser.add_argument("--layer", type=int, help="show this one, from 0; else those that tell most")
    parser.add_argument("--head", type=int, help="show this one, from 0")
    parser.add_argument("--name", help="of the folder in results/memory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder itself, instead")
    parser.add_argument("--replace", action="store_true", help="an inspection that is there already")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _inspect(options), interrupted="nothing is written before all is known")


def _inspect(options: argparse.Namespace) -> None:
    if options.name is not None and not is_file_name(options.name):
        raise ConfigError(f"--name: got {options.name!r}, expected letters, digits, '_', '-', '+' and '.'")
    if options.name is not None and options.out is not None:
        raise ConfigError(f"--name: got {options.name!r} beside --out {options.out}, expected one of them")
    # Here and not above.
    import torch

    from palimpsa.analysis.memory.inspection_file import NAME as INSPECTION
    from palimpsa.evaluation.memory.inspection import check_places, inspect_memory
    from palimpsa.evaluation.memory.source import load_source, task_sequence, text_sequence
    from palimpsa.runs.files import whole_folder

    # All products are small: where others use the machine too, threads that wait for each other take ten times as long.
    torch.set_num_threads(1)
    source = load_source(options.checkpoint.expanduser())
    check_places(source.model, options.layer, options.head)
    folder = options.out or RESULTS / (options.name or source.name)
    _check_place(folder, replace=options.replace, mark=INSPECTION)
    if options.text is not None:
        sequence = text_sequence(source, options.text)
    else:
        sequence = task_sequence(source, options.task)
    console = plain_console(soft_wrap=True)
    console.print(f"{source.label}: {source.mixer}, {len(sequence.tokens):,} tokens")
    if sequence.note:
        console.print(f"note: {sequence.note}")
    content = inspect_memory(source, sequence, layer=options.layer, head=options.head)
    with whole_folder(folder, replace=options.replace) as partial:
        (partial / INSPECTION).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
        names = write_views(partial)
    _write_plotly(folder.absolute().parent / PLOTLY)
    for line in _told(content):
        console.print(line)
    for name in (INSPECTION, *names):
        console.print(str(folder / name))


def _check_place(folder: Path, *, replace: bool, mark: str) -> None:
    """Raises ConfigError for a folder that is there, unless an inspection may be replaced."""
    if not os.path.lexists(folder):
        return
    if not replace:
        raise ConfigError(f"--out: {folder} is there already, expected a new folder, or --replace")
    if not (folder / mark).is_file():
        raise ConfigError(f"--replace: got {folder}, which is no inspection, expected a folder with {mark}")


def write_views(folder: Path) -> list[str]:
    """Draws the picture and writes the page of the inspection in a folder; their names.

    Raises:
        ResultError: for an inspection that is none.
        OSError: where they cannot be written.
    """
    from palimpsa.analysis.dashboard.memory_page import write_page
    from palimpsa.analysis.draw.canvas import save_figure
    from palimpsa.analysis.memory.inspection_file import read_inspection
    from palimpsa.analysis.memory.picture import memory_picture

    pictures = save_figure(memory_picture(read_inspection(folder)), folder / "inspection")
    page = write_page(folder, folder / "inspection.html", f"../{PLOTLY}")
    return [path.name for path in (*pictures, page)]


def _write_plotly(path: Path) -> None:
    """The library that pages draw with, as the installed package has it."""
    import plotly

    source = Path(plotly.__file__).parent / "package_data" / PLOTLY
    if not path.exists() or path.stat().st_size != source.stat().st_size:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            shutil.copyfile(source, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _told(content: dict[str, Any]) -> list[str]:
    """A line for each head with details, and what chance comes to."""
    lines = []
    for head in content["heads"]:
        if "details" not in head:
            continue
        age = head["recalled_age"]
        words = [
            f"N_t {'infinite' if head['window_mean'] is None else format(head['window_mean'], ',.4g')}",
            "not recalled" if age is None else f"recall halves after age {age:,}",
        ]
        if "own_pair" in head:
            words.append(f"{head['own_pair']['share']:.0%} of queries read their own pair")
        lines.append(f"layer {head['layer']}, head {head['head']}: {', '.join(words)}")
    if content["queries"] is not None:
        lines.append(f"by chance {content['queries']['chance']:.0%} of queries would read their own pair")
    return lines
