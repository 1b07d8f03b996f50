"""The zero-shot tasks: the harness's own definitions, read from its files and redirected to data, never rewritten."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.text.files import file_sha256

BOTH_WAYS = (
    "a folder of JSON-lines files, evaluation.data_dir=FOLDER (make evaluate DATA=FOLDER; docs/evaluation.md has their "
    "names), or a network to load them from the hub"
)


@dataclass(frozen=True)
class ZeroShotTask:
    """A task of the harness.

    Args:
        definition: its file below lm_eval/tasks.
        accuracy: the metric that counts in averages; None for one that is no accuracy.
        perplexity: the metric that is a perplexity, if there is one.
        split: that is scored.
        fields: that each record must have.
        local_fields: what a record may have instead, where a definition's preprocessing was done already.
        local_definition: keys that are then replaced.
        replaced: in words, what that replaces.
    """

    definition: str
    accuracy: str | None
    split: str
    fields: tuple[str, ...]
    perplexity: str | None = None
    local_fields: tuple[str, ...] = ()
    local_definition: Mapping[str, Any] = field(default_factory=dict)
    replaced: str = ""

    @property
    def metrics(self) -> list[str]:
        """Those that are reported."""
        return [metric for metric in (self.perplexity, self.accuracy) if metric is not None]


# By the harness's names, in the order of the paper's table.
TASKS: dict[str, ZeroShotTask] = {
    "wikitext": ZeroShotTask(
        "wikitext/wikitext.yaml", accuracy=None, perplexity="word_perplexity", split="test", fields=("page",)
    ),
    "lambada_openai": ZeroShotTask(
        "lambada/lambada_openai.yaml", accuracy="acc", perplexity="perplexity", split="test", fields=("text",)
    ),
    "piqa": ZeroShotTask(
        "piqa/piqa.yaml", accuracy="acc", split="validation", fields=("goal", "sol1", "sol2", "label")
    ),
    "hellaswag": ZeroShotTask(
        "hellaswag/hellaswag.yaml",
        accuracy="acc_norm",
        split="validation",
        fields=("ctx_a", "ctx_b", "activity_label", "endings", "label"),
        local_fields=("query", "choices", "label"),
        local_definition={"process_docs": None},
        replaced="process_docs is left out: the file has no ctx_a, and its query and choices are cleaned already",
    ),
    "winogrande": ZeroShotTask(
        "winogrande/default.yaml",
        accuracy="acc",
        split="validation",
        fields=("sentence", "option1", "option2", "answer"),
    ),
    "arc_easy": ZeroShotTask(
        "arc/arc_easy.yaml", accuracy="acc", split="test", fields=("question", "choices", "answerKey")
    ),
    "arc_challenge": ZeroShotTask(
        "arc/arc_challenge.yaml", accuracy="acc_norm", split="test", fields=("question", "choices", "answerKey")
    ),
    "social_iqa": ZeroShotTask(
        "siqa/siqa.yaml",
        accuracy="acc",
        split="validation",
        fields=("context", "question", "answerA", "answerB", "answerC", "label"),
    ),
    "boolq": ZeroShotTask(
        "super_glue/boolq/default.yaml", accuracy="acc", split="validation", fields=("passage", "question", "label")
    ),
}
# What an average is over: without BoolQ seven accuracies, the paper's.
AVERAGES = {
    "average_of_7": tuple(name for name, task in TASKS.items() if task.accuracy is not None and name != "boolq"),
    "average_of_8": tuple(name for name, task in TASKS.items() if task.accuracy is not None),
}


def check_task_names(names: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest known name, for a task that there is not, or one that is named twice."""
    for name in names:
        if name not in TASKS:
            raise ConfigError(
                f"evaluation.tasks: got {name!r}, expected some of {', '.join(TASKS)}{nearest(name, TASKS)}"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"evaluation.tasks: got {twice!r} twice, expected each task once")


@dataclass(frozen=True)
class RedirectedTasks:
    """Definitions in a folder, for the harness's TaskManager.

    Args:
        files: name and SHA-256 of the data of each task; empty where they come from the hub.
        notes: a line for each task of which something was replaced.
    """

    files: dict[str, dict[str, str]]
    notes: list[str]


def write_definitions(names: Sequence[str], data_dir: str | None, folder: Path) -> RedirectedTasks:
    """Writes a definition a task that includes the harness's own, and takes its records from a local file.

    Args:
        names: of `TASKS`.
        data_dir: a folder of NAME.jsonl; None: the records are the hub's, and nothing is redirected.
        folder: where they are written, and where the records are cached.

    Raises:
        ConfigError: for an unknown task, a file that is missing or empty, and, with file and line, a record that is no
            JSON or lacks a field.
    """
    check_task_names(names)
    found = RedirectedTasks({}, [])
    for name in names:
        task = TASKS[name]
        definition: dict[str, Any] = {"include": str(_definitions() / task.definition), "task": name}
        if data_dir is not None:
            path = (Path(data_dir) / f"{name}.jsonl").absolute()
            is_local = _check_records(path, name, task)
            definition |= {
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {task.split: str(path)}, "cache_dir": str(folder / "cache")},
                # The other splits are for examples in the prompt, of which there are none.
                **{f"{split}_split": None for split in ("training", "validation", "test")},
                f"{task.split}_split": task.split,
            }
            found.files[name] = {"file": path.name, "sha256": file_sha256(path)}
            if is_local:
                definition |= dict(task.local_definition)
                found.notes.append(f"{name}: {task.replaced}")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")
    return found


def _definitions() -> Path:
    """The harness's folder of definitions. Raises ConfigError where the harness is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ConfigError("evaluation needs the lm-eval library: pip install -e '.[text]'")
    return Path(spec.origin).parent / "tasks"


def _check_records(path: Path, name: str, task: ZeroShotTask) -> bool:
    """Holds every record of a file to a task's fields; returns whether it has the local ones instead."""
    if not path.is_file():
        raise ConfigError(f"evaluation.data_dir: {path}: missing, expected the records of {name}; or {BOTH_WAYS}")
    is_local = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = _record(line, f"{path}:{number}")
            if is_local is None:
                is_local = bool(task.local_fields) and task.fields[0] not in record
            fields = task.local_fields if is_local else task.fields
            missing = [one for one in fields if one not in record]
            if missing:
                known = ", ".join(map(str, record)) or "none"
                raise ConfigError(
                    f"{path}:{number}: has no field {missing[0]!r}, expected {', '.join(fields)}; its fields: {known}"
                )
            # The last field is the answer, or the text.
            empty = [one for one in fields if record[one] is None or (one == fields[-1] and record[one] == "")]
            if empty:
                raise ConfigError(f"{path}:{number}: got {record[empty[0]]!r} in {empty[0]!r}, expected a value")
    if is_local is None:
        raise ConfigError(f"{path}: is empty, expected the records of {name}, one a line")
    return is_local


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: got a line that is no JSON ({error}), expected a record") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: got {type(record).__name__}, expected an object")
    return record
