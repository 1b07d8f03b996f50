"""The zero-shot tasks: the harness's own definitions, read from its files and redirected to data, never rewritten."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.evaluation.task_records import (
    CHOICES,
    GAP,
    LABELLED_CHOICES,
    LAST_WORD,
    NO_OR_YES,
    OF_THREE,
    OF_TWO,
    ONE_LABEL,
    TEXT,
    WORDS,
    Kind,
    check_records,
    number_of,
)
from palimpsa.text.files import file_sha256

BOTH_WAYS = (
    "a folder of the tasks' records, make evaluate DATA=FOLDER (evaluation.data_dir=FOLDER; docs/evaluation.md has the "
    "names of its files), or a network to load them from the hub"
)


@dataclass(frozen=True)
class ZeroShotTask:
    """A task of the harness.

    Args:
        definition: its file below lm_eval/tasks.
        accuracy: the metric that counts in averages; None for one that is no accuracy.
        perplexity: the metric that is a perplexity, if there is one.
        split: that is scored.
        fields: that each record must have, and what each may be.
        local_fields: what a record may have instead, where a definition's preprocessing was done already.
        local_definition: keys that are then replaced.
        replaced: in words, what that replaces.
    """

    definition: str
    accuracy: str | None
    split: str
    fields: Mapping[str, Kind]
    perplexity: str | None = None
    local_fields: Mapping[str, Kind] = field(default_factory=dict)
    local_definition: Mapping[str, Any] = field(default_factory=dict)
    replaced: str = ""

    @property
    def metrics(self) -> list[str]:
        """Those that are reported."""
        return [metric for metric in (self.perplexity, self.accuracy) if metric is not None]


_ARC_FIELDS = {"question": TEXT, "choices": LABELLED_CHOICES, "answerKey": ONE_LABEL}
# By the harness's names, in the order of the paper's table.
TASKS: dict[str, ZeroShotTask] = {
    "wikitext": ZeroShotTask(
        "wikitext/wikitext.yaml", accuracy=None, perplexity="word_perplexity", split="test", fields={"page": WORDS}
    ),
    "lambada_openai": ZeroShotTask(
        "lambada/lambada_openai.yaml", accuracy="acc", perplexity="perplexity", split="test", fields={"text": LAST_WORD}
    ),
    "piqa": ZeroShotTask(
        "piqa/piqa.yaml",
        accuracy="acc",
        split="validation",
        fields={"goal": TEXT, "sol1": WORDS, "sol2": WORDS, "label": NO_OR_YES},
    ),
    "hellaswag": ZeroShotTask(
        "hellaswag/hellaswag.yaml",
        accuracy="acc_norm",
        split="validation",
        fields={
            **{"ctx_a": TEXT, "ctx_b": TEXT, "activity_label": TEXT},
            **{"endings": CHOICES, "label": number_of("endings")},
        },
        local_fields={"query": TEXT, "choices": CHOICES, "label": number_of("choices")},
        local_definition={"process_docs": None},
        replaced="process_docs is left out: the file has no ctx_a, and its query and choices are cleaned already",
    ),
    "winogrande": ZeroShotTask(
        "winogrande/default.yaml",
        accuracy="acc",
        split="validation",
        fields={"sentence": GAP, "option1": WORDS, "option2": WORDS, "answer": OF_TWO},
    ),
    "arc_easy": ZeroShotTask("arc/arc_easy.yaml", accuracy="acc", split="test", fields=_ARC_FIELDS),
    "arc_challenge": ZeroShotTask("arc/arc_challenge.yaml", accuracy="acc_norm", split="test", fields=_ARC_FIELDS),
    "social_iqa": ZeroShotTask(
        "siqa/siqa.yaml",
        accuracy="acc",
        split="validation",
        fields={
            **{"context": TEXT, "question": TEXT},
            **{"answerA": WORDS, "answerB": WORDS, "answerC": WORDS, "label": OF_THREE},
        },
    ),
    "boolq": ZeroShotTask(
        "super_glue/boolq/default.yaml",
        accuracy="acc",
        split="validation",
        fields={"passage": TEXT, "question": TEXT, "label": NO_OR_YES},
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
        ConfigError: for an unknown task or a folder that is none; or see `check_records`.
    """
    check_task_names(names)
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"evaluation.data_dir: got {data_dir!r}, which is no folder, expected {BOTH_WAYS}")
    found = RedirectedTasks({}, [])
    for name in names:
        task = TASKS[name]
        definition: dict[str, Any] = {"include": str(_definitions() / task.definition), "task": name}
        if data_dir is not None:
            path = (Path(data_dir) / f"{name}.jsonl").absolute()
            is_local = check_records(path, task.fields, task.local_fields, f"the records of {name}: {BOTH_WAYS}", name)
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
