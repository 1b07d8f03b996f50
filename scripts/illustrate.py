"""Draws the blocks as their modules compute them, and recall as the operator and its kin do. No GPU, no network.

What takes minutes is computed by --compute alone: recall_by_age.csv and capacity.csv, where the sources that they
follow from have changed since. inputs.json says which those were.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palimpsa.config.process import run_script

MODELS = ("palimpsa_m", "palimpsa_d")
SCALE = "paper"
HOW = "`make illustrations` computes it again, in minutes"

Rows = list[dict[str, Any]]


def main() -> int:
    """0; 1 where a file is out of date or missing, or with one line on stderr where something could not be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/illustrations"), help="folder to write to")
    parser.add_argument("--compute", action="store_true", help="compute the CSV files that are out of date")
    arguments = parser.parse_args()
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.build import build_illustrations
    from palimpsa.runs.files import write_atomic
    from palimpsa.runs.schema import ResultError

    folder: Path = arguments.results
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "architecture.json", json.dumps(blocks(), indent=1, ensure_ascii=False) + "\n")
        if arguments.compute:
            compute(folder)
        stale = out_of_date(folder)
        paths = build_illustrations(folder)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    for line in stale:
        print(f"error: {line}; {HOW}", file=sys.stderr)
    return 1 if stale else 0


def blocks() -> Rows:
    """Palimpsa-M and Palimpsa-D at the paper's sizes, as their configs build them."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from palimpsa.config.compose import CONFIG_DIR
    from palimpsa.config.schema import register_schema
    from palimpsa.model.data_flow import data_flow

    register_schema()
    found = []
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        for model in MODELS:
            config = compose("train", [f"model={model}", f"scale={SCALE}"]).model
            mixer = instantiate(config.mixer, d_model=config.d_model)
            found.append({"label": config.label, "boxes": data_flow(mixer)})
    return found


def recall_rows() -> Rows:
    from palimpsa.theory.recall_by_age import MEMORIES, recall_by_age

    return [row for memory in MEMORIES for row in recall_by_age(memory)]


def capacity_rows() -> Rows:
    from palimpsa.theory.capacity import capacity

    return capacity()


# A file's rows, and the module of palimpsa.theory that they and their parameters are from.
COMPUTED: dict[str, tuple[Callable[[], Rows], str]] = {
    "recall_by_age.csv": (recall_rows, "palimpsa.theory.recall_by_age"),
    "capacity.csv": (capacity_rows, "palimpsa.theory.capacity"),
}


def compute(folder: Path) -> None:
    """Writes the CSV files that are out of date, and to inputs.json what they were made from."""
    from palimpsa.analysis.collect.illustration_files import COLUMNS
    from palimpsa.runs.files import write_all_atomic
    from palimpsa.theory.sources import source_digests

    for name, (rows, module) in COMPUTED.items():
        if out_of_date(folder, name):
            # Before they are imported: what is edited meanwhile is not what they are made from.
            sources = source_digests(module)
            text = as_csv(rows(), COLUMNS[name])
            inputs = _read_inputs(folder) | {name: {"content": _digest(text.encode()), "sources": sources}}
            ordered = json.dumps({one: inputs[one] for one in COMPUTED if one in inputs}, indent=1)
            write_all_atomic({folder / name: text, folder / "inputs.json": ordered + "\n"})


def out_of_date(folder: Path, *names: str) -> list[str]:
    """Why CSV files of a folder do not follow from the sources as they are, a line each; all of `COMPUTED` by default.

    Raises ResultError: inputs.json is not what `compute` writes.
    """
    from palimpsa.runs.files import read_regular
    from palimpsa.theory.sources import source_digests

    inputs, found = _read_inputs(folder), []
    for name in names or COMPUTED:
        path, made_from = folder / name, inputs.get(name)
        now = source_digests(COMPUTED[name][1])
        if not path.exists():
            found.append(f"{path}: not there")
        elif made_from is None:
            found.append(f"{path}: out of date, {folder / 'inputs.json'} does not say what it was made from")
        elif made_from["content"] != _digest(read_regular(path)):
            found.append(f"{path}: out of date, it was changed since it was computed")
        elif changed := [source for source in {**now, **made_from["sources"]} if not _same(source, made_from, now)]:
            found.append(f"{path}: out of date, {' and '.join(changed)} changed since it was computed")
    return found


def _same(source: str, made_from: dict[str, Any], now: dict[str, str]) -> bool:
    return made_from["sources"].get(source) == now.get(source)


def _read_inputs(folder: Path) -> dict[str, Any]:
    from palimpsa.runs.result import read_json_object
    from palimpsa.runs.schema import ResultError

    path = folder / "inputs.json"
    if not path.exists():
        return {}
    expected = "expected what scripts/illustrate.py --compute writes"
    inputs = read_json_object(path, expected)
    for name, made_from in inputs.items():
        if not (isinstance(made_from, dict) and isinstance(made_from.get("sources"), dict) and "content" in made_from):
            raise ResultError(f"{path}: {name} is not made of content and sources, {expected}")
    return inputs


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def as_csv(rows: Rows, columns: tuple[str, ...]) -> str:
    """A CSV file with these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    run_script(main)
