"""What a fine-tuning starts from, a run, a folder, or a model that is converted first; and it as a command line."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsa.config.compose import compose_config
from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import CONFIG_DIR, typed
from palimpsa.conversion.command import convert_as_told, metaplastic_words
from palimpsa.model.build import SKELETON_KEYS
from palimpsa.runs.files import write_atomic
from palimpsa.runs.identity import upgraded
from palimpsa.runs.result import read_json_object
from palimpsa.tasks.build import FILES
from palimpsa.tasks.data_digests import split_folder, with_data_digests
from palimpsa.training.storage.start import weights_are_gone
from palimpsa.training.storage.trained import OWN_MODEL_TYPE, read_source, weights_digest

if TYPE_CHECKING:
    from palimpsa.text.manifest import TokenizerFacts

# The file of configs/model that a model of each class builds on: what its own config does not say is as it is there.
BASES = {"palimpsa.mixers.PalimpsaD": "palimpsa_d", "palimpsa.mixers.PalimpsaM": "palimpsa_m"}
# Digits of a digest in a folder's name.
NUM_DIGITS = 12


def model_of(source: Path) -> dict[str, Any] | None:
    """The `model` group of a run, a checkpoint or a folder of ours; None for a model of other programs.

    Raises:
        ConfigError, RunDirectoryError, ResultError: for what is none of them, or is damaged.
    """
    check_is_there(source)
    file = source / "config.json"
    if not file.is_file():
        # Of a checkpoint; or a layout that has the weights alone, which is for the conversion to say.
        return read_source(source).model_config if source.is_file() else None
    config = read_json_object(file, "expected the config of a run or of a model", with_infinity=True)
    if {"model", "task"} <= config.keys():
        return config["model"]
    return config if config.get("model_type") == OWN_MODEL_TYPE else None


def check_is_there(source: Path) -> None:
    """Raises ConfigError where nothing has this path."""
    if not source.exists():
        raise ConfigError(f"SOURCE: got {str(source)!r}, which is not there, expected a trained model")


def is_metaplastic(model: Mapping[str, Any]) -> bool:
    """Whether a `model` group has importances: Palimpsa-D or Palimpsa-M, and not their twins without."""
    mixer = model["mixer"]
    return mixer["_target_"] in BASES and mixer.get("metaplastic", True)


def converted(source: Path, folder: Path, options: str = "") -> Path:
    """A metaplastic model made of a source, below a folder: the same source and options give the same place, once.

    Args:
        options: of `scripts/convert.py metaplastic`, as on a command line.

    Returns:
        the folder; the report of every tensor lies beside it, in NAME.txt.

    Raises:
        ConfigError, RunDirectoryError, ResultError, OSError: where it cannot be converted, or written.
    """
    words = metaplastic_words(options, "--convert")
    place = folder / f"{source.resolve().name}_{conversion_digits(_content_digest(source), options)}"
    report_file = place.with_name(f"{place.name}.txt")
    if place.is_dir() and report_file.is_file() and not weights_are_gone(place):
        return place
    # What was killed before its report is there, or copied without its weights.
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    report = convert_as_told(["metaplastic", str(source), str(place), *words])
    try:
        write_atomic(report_file, "".join(f"{line}\n" for line in report))
    except OSError:
        # Or it would count as converted, without the report.
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place


def conversion_digits(content_digest: str, options: str) -> str:
    """The end of the name of what a source of this digest becomes by these options: see `converted`."""
    return hashlib.sha256(f"{content_digest} {options}".encode()).hexdigest()[:NUM_DIGITS]


def _content_digest(source: Path) -> str:
    """Of what is converted: of runs and checkpoints the weights, of folders of a model all bytes of their files.

    A folder's config and tokenizer may be others beside the same weights.
    """
    if not source.is_dir() or not (source / "config.json").is_file() or _is_run(source):
        return weights_digest(read_source(source).weights)
    digest = hashlib.sha256()
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _is_run(source: Path) -> bool:
    config = read_json_object(source / "config.json", "expected the config of a run or of a model", with_infinity=True)
    return {"model", "task"} <= config.keys()


def model_overrides(model: Mapping[str, Any]) -> list[str]:
    """The command line that has a run build this model, whatever its scale says.

    Raises:
        ConfigError: for a model of another class than those of `BASES`.
    """
    target = str(model["mixer"].get("_target_"))
    if target not in BASES:
        raise ConfigError(
            f"SOURCE: got a model of {target}, expected one of {', '.join(BASES)}: no other becomes metaplastic"
        )
    keys = ("name", "label", *(key for key in SKELETON_KEYS if key in model))
    values = {f"model.{key}": model[key] for key in keys}
    values |= {f"model.mixer.{key}": value for key, value in model["mixer"].items() if key != "_target_"}
    return [f"model={BASES[target]}", *(f"++{key}={as_override(value)}" for key, value in values.items())]


def as_override(value: Any) -> str:
    """A plain value as Hydra reads it on a command line.

    >>> as_override([{"seq_len": 8, "in_figure": False}, float("inf"), None])
    '[{seq_len:8,in_figure:false},inf,null]'
    >>> print(as_override("Mamba-2 (it's, small)"))
    'Mamba-2 (it\\'s, small)'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{as_override(one)}' for name, one in value.items())}}}"
    # As stored configs have what is no number to JSON.
    if value in ("inf", "-inf", "nan"):
        return value
    # OmegaConf's interpolations first, then Hydra's quotes: both count the backslashes before.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


def source_overrides(source: Path, given: Sequence[str]) -> list[str]:
    """The command line of a run that starts from a source as it is.

    Args:
        given: overrides of whoever asks, which come last, so that they count.

    Raises:
        ConfigError, RunDirectoryError, ResultError: see `model_of`, `model_overrides` and `read_source`.
    """
    try:
        model = model_of(source)
    except RunDirectoryError as error:
        raise RunDirectoryError(f"SOURCE: {error}") from error
    if model is None:
        raise ConfigError(
            f"SOURCE: got {str(source)!r}, expected the directory of a run or a folder of scripts/convert.py's"
        )
    return start_overrides(model, str(source), given)


def start_overrides(model: Mapping[str, Any], weights: str, given: Sequence[str]) -> list[str]:
    """The command line of a run that builds a `model` group and starts from weights.

    Raises:
        ConfigError: see `model_overrides`.
    """
    start = [f"task.vocab_size={model['vocab_size']}", f"start.weights={as_override(weights)}"]
    return [*model_overrides(model), *start, *given]


def check_data(overrides: Sequence[str], config_name: str) -> None:
    """Reads the manifests of the token shards that a command line names, before a model is converted for them.

    Args:
        overrides: of which those of the task count: the others may be of a model that is not known yet.

    Raises:
        ConfigError: where a manifest is missing or damaged.
    """
    named = [one for one in overrides if one.lstrip("+~").startswith("task")]
    with_data_digests(typed(compose_config(named, config_name)))


def check_reads_alike(source: Path, data: str) -> None:
    """Holds the tokenizer of a run, or in a folder, to the one that made the token shards of further training.

    Raises:
        ConfigError: naming the first text of which it makes other ids. What has no tokenizer, or a run whose own shards
            are gone, says nothing.
    """
    # Here and not above: transformers.
    from palimpsa.conversion.tokenizer import FACTS, read_folder_tokenizer
    from palimpsa.text.golden import check_tokenizer
    from palimpsa.text.manifest import read_manifest
    from palimpsa.text.tokenizers import LAYOUTS, build_tokenizer, find_tokenizer

    manifest, model = read_manifest(split_folder(data, "train")), model_of(source)
    new, known = manifest.tokenizer, _tokenizer_of_a_run(source)
    if model is not None and new.vocab_size > model["vocab_size"]:
        raise ConfigError(
            f"task.data: {data} does not fit {source}: got {new.vocab_size} ids of {new.name}, expected at most the "
            f"model's {model['vocab_size']}"
        )
    if known is not None and known.golden_ids != new.golden_ids:
        raise ConfigError(f"task.data: {data} does not fit {source}: got ids of {new.name}, expected {known.name}'s")
    try:
        if (source / FACTS).is_file():
            facts = read_json_object(source / FACTS, "expected what is known of a tokenizer")
            if facts.get("sha256") != new.sha256 or facts.get("golden_ids") != new.golden_ids:
                check_tokenizer(manifest, read_folder_tokenizer(source))
        elif any(all((source / file).is_file() for file in layout) for layout in LAYOUTS):
            # Of a model of other programs.
            files = find_tokenizer(str(source), end_of_text=new.end_of_text, reaches_hub=False)
            check_tokenizer(manifest, build_tokenizer(files))
    except ConfigError as error:
        raise ConfigError(f"task.data: {data} does not fit {source}: {error}") from error


def _tokenizer_of_a_run(source: Path) -> TokenizerFacts | None:
    """Of the shards that a run was trained on, where they still are."""
    from palimpsa.text.manifest import read_manifest

    task = _task_of(source)
    if task is None or task.get("data") is None:
        return None
    try:
        manifest = read_manifest(split_folder(task["data"], "train"))
    except ConfigError:
        return None
    return manifest.tokenizer if manifest.digest == task.get("train_digest") else None


def default_task(source: Path, given: Sequence[str]) -> list[str]:
    """The task of a run, on its data, unless whoever asks names one; of a folder nobody knows another than text.

    Of a task that is no file of configs/task, as many experiments' are, every key is given; where its runs lie is not.
    """
    if any(override.startswith("task=") for override in given):
        return []
    task = _task_of(source)
    if task is None:
        return ["task=commonsense"]
    if _base_of(task) == task["name"]:
        data = [] if task.get("data") is None else [f"task.data={as_override(task['data'])}"]
        return [f"task={task['name']}", *data]
    return _whole_task({name: value for name, value in task.items() if name != "directory"})


def own_task_overrides(source: Path) -> list[str]:
    """The command line of the very task that a run was trained on, every key of it; empty for what is no run."""
    task = _task_of(source)
    return [] if task is None else _whole_task(task)


def run_config(source: Path) -> dict[str, Any] | None:
    """The config of a run, with its keys where they are today; None for what is no run."""
    file = source / "config.json"
    config = read_json_object(file, "expected a config", with_infinity=True) if file.is_file() else {}
    return upgraded(config) if {"task", "model"} <= config.keys() else None


def _task_of(source: Path) -> dict[str, Any] | None:
    config = run_config(source)
    return None if config is None else config["task"]


def _base_of(task: Mapping[str, Any]) -> str:
    """The file of configs/task that a task begins with: its own, or where it has none one of its kind."""
    name: str = task["name"]
    has_file = (CONFIG_DIR / "task" / f"{name}.yaml").is_file()
    # What has no kind came before the key, of the first one.
    return name if has_file else FILES.get(task.get("kind", next(iter(FILES))), name)


def _whole_task(task: Mapping[str, Any]) -> list[str]:
    # Numbers of the sweep that it was in are none of its own.
    keys = {name: value for name, value in task.items() if name not in ("kind", "sweep")}
    return [f"task={_base_of(task)}", *(f"++task.{name}={as_override(value)}" for name, value in keys.items())]
