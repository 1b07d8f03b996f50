"""Reads the blocks off their modules, and recall off the operator and its kin, and draws them. No GPU, no network."""

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from palimpsa.analysis.build import build_illustrations
from palimpsa.analysis.collect.illustration_files import CAPACITY_COLUMNS, RECALL_COLUMNS
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.schema import register_schema
from palimpsa.model.data_flow import data_flow
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError
from palimpsa.theory.capacity import capacity
from palimpsa.theory.recall_by_age import MEMORIES, recall_by_age

MODELS = ("palimpsa_m", "palimpsa_d")
SCALE = "paper"


def main() -> int:
    """0, or 1 with one line on stderr when something could not be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/illustrations"), help="folder to write to")
    folder = parser.parse_args().results
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "architecture.json", json.dumps(blocks(), indent=1, ensure_ascii=False) + "\n")
        recall = [row for memory in MEMORIES for row in recall_by_age(memory)]
        write_atomic(folder / "recall_by_age.csv", as_csv(recall, RECALL_COLUMNS))
        write_atomic(folder / "capacity.csv", as_csv(capacity(), CAPACITY_COLUMNS))
        paths = build_illustrations(folder)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


def blocks() -> list[dict[str, Any]]:
    """Palimpsa-M and Palimpsa-D at the paper's sizes, as their configs build them."""
    register_schema()
    found = []
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        for model in MODELS:
            config = compose("train", [f"model={model}", f"scale={SCALE}"]).model
            mixer = instantiate(config.mixer, d_model=config.d_model)
            found.append({"label": config.label, "boxes": data_flow(mixer)})
    return found


def as_csv(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """A CSV file with these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
