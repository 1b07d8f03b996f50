"""result.json, the last act of a run: made here, and read here by whoever asks what a run came to."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any, NoReturn

from palimpsa.config.keys import same_value
from palimpsa.config.private import hide_private, with_short_paths
from palimpsa.config.schema import TrainConfig, plain
from palimpsa.runs.files import read_regular
from palimpsa.runs.identity import config_hash, upgraded
from palimpsa.runs.provenance import provenance
from palimpsa.runs.rows import history_of, result_rows
from palimpsa.runs.schema import (
    CHECKSUM,
    DIVERGED,
    FAILED,
    RESULT_FORMAT,
    FileUnreadableError,
    ResultError,
    shorten,
)

_NO_METRICS = ("state_size", "num_parameters", "notes", "traceback")


def status_of(error: BaseException) -> str:
    """How a run ended that an error ended."""
    return DIVERGED if isinstance(error, FloatingPointError) else FAILED


def run_result(
    config: TrainConfig,
    status: str,
    error: str | None,
    stages: list[dict[str, Any]],
    summary: dict[str, Any],
    started: datetime.datetime,
    clock: float,
) -> dict[str, Any]:
    """The content of result.json: run, stages, metrics, config, provenance.

    Args:
        config: of the run.
        status: FINISHED, FAILED or DIVERGED.
        error: what ended it, None where it finished.
        stages: a dictionary for each stage that ended.
        summary: what else there is to say: state_size and num_parameters go to `run`, notes, which a person should
            hear of, to `provenance`, a traceback stands alone, the others are metrics.
        started, clock: the time and `time.perf_counter()` at the beginning of the run's last session.
    """
    stored = plain(config)
    result = {
        "format": RESULT_FORMAT,
        "status": status,
        "error": None if error is None else hide_private(error),
        "run": {
            **run_of(stored),
            "state_size": summary.get("state_size"),
            "num_parameters": summary.get("num_parameters"),
        },
        "stages": stages,
        "metrics": {k: v for k, v in summary.items() if k not in _NO_METRICS},
        **({"traceback": hide_private(summary["traceback"])} if "traceback" in summary else {}),
        "config": with_short_paths(stored),
        "config_hash": config_hash(stored),
        "provenance": {
            **provenance(config.trainer.accelerator),
            "started": started.isoformat(timespec="seconds"),
            "wall_time_s": round(time.perf_counter() - clock, 2),
            **({"notes": summary["notes"]} if summary.get("notes") else {}),
        },
    }
    result = _encodable(result)
    return {**result, CHECKSUM: checksum(result)}


def _encodable(value: Any) -> Any:
    """With the half characters that stand for bytes of a path or an argument that is not UTF-8 written out."""
    if isinstance(value, dict):
        return {name: _encodable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def read_result(path: Path) -> dict[str, Any]:
    """A result.json as its dictionary: see `read_result_and_rows`."""
    return read_result_and_rows(path)[0]


def read_result_and_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result.json as its dictionary, one of an older format as this one has it, and its rows of runs.csv.

    It is the file that was written, by its checksum; every value that figures are made of is one that a run can have;
    and it says of the run what its config says.

    Raises:
        ResultError: in one line that names the file, what was found and what was expected.
        FileUnreadableError: the system does not let it be read, which says nothing about what is in it.
    """
    expected = f"expected a complete result of format {RESULT_FORMAT}"
    result = read_json_object(path, expected)
    found = shorten(result["format"]) if "format" in result else "missing"
    if result.get("format") not in (1, 2, RESULT_FORMAT):
        raise ResultError(f"{path}: format is {found}, {expected}")
    # Also of an older format, which has none: one that has is not what it says it is.
    if result["format"] == RESULT_FORMAT or CHECKSUM in result:
        stored = result.get(CHECKSUM)
        if stored != checksum(result):
            raise ResultError(
                f"{path}: its {CHECKSUM} is {shorten(stored)}, that of its content {checksum(result)}; expected the "
                "file as it was written"
            )
    try:
        result = _in_todays_format(result)
        rows = result_rows(path, result)
        history_of(path, result)
        _check_agreement(path, result)
    except ResultError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A config of a shape that no run has.
        raise ResultError(f"{path}: its config cannot be read ({type(error).__name__}: {error}), {expected}") from None
    return result, rows


def checksum(result: dict[str, Any]) -> str:
    """64 hexadecimal digits of all that a result says, however it is spaced and ordered, apart from its checksum."""
    rest = {name: value for name, value in result.items() if name != CHECKSUM}
    return hashlib.sha256(_canonical(rest)).hexdigest()


def _canonical(value: Any, *, allow_nan: bool = False) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=allow_nan).encode()


def _check_agreement(path: Path, result: dict[str, Any]) -> None:
    """Raises ResultError where a result says something else of its run than the config beside it."""
    config = result["config"]
    stated, expected = result["config_hash"], config_hash(config)
    if stated != expected:
        raise ResultError(f"{path}: config_hash is {shorten(stated)}, expected {expected}, that of the config in it")
    for name, value in run_of(config).items():
        if not same_value(result["run"][name], value):
            raise ResultError(
                f"{path}: run.{name} is {shorten(result['run'][name])}, expected {shorten(value)}, that of the config "
                "in it"
            )


def run_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a result calls its run, from the plain config."""
    variant = config["variant"]
    return {
        "task": config["task"]["name"],
        "scale": config["scale"]["name"],
        "model": f"{config['model']['name']}{variant}",
        "label": f"{config['model']['label']}{variant.replace('_', ' ')}",
        "lr": config["optimizer"]["lr"],
        "seed": config["seed"],
    }


def read_json_object(path: Path, expected: str, *, with_infinity: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        expected: "expected ...", the end of an error.
        with_infinity: takes the bare word Infinity, which other programs' configs have: transformers before 5 wrote it;
            and {"__float__": "Infinity"} as the number, which transformers writes since.

    Raises:
        ResultError: for a file that is cut short or holds something else, NaN, Infinity or a number of more than
            double precision, which Python would read, and half a surrogate pair, which no file can hold, among it.
        FileUnreadableError: the system does not let it be read.
    """

    def reject(constant: str) -> NoReturn:
        raise ResultError(
            f"{path}: holds {constant[:60]}, which is not JSON, {expected} (null where there is no number)"
        )

    def constant(text: str) -> float:
        if text == "NaN" or not with_infinity:
            reject(text)
        return float(text)

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            reject(text)
        return value

    def tagged(found: dict[str, Any]) -> Any:
        tag = found.get("__float__")
        return float(tag) if with_infinity and len(found) == 1 and tag in ("Infinity", "-Infinity") else found

    try:
        content = read_regular(path)
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read ({error.strerror}), {expected}") from None
    try:
        # As UTF-8 alone, which Python would guess from the first bytes.
        found = json.loads(content.decode(), parse_constant=constant, parse_float=finite, object_hook=tagged)
        _canonical(found, allow_nan=with_infinity)
    except ResultError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ResultError(f"{path}: got {len(content)} bytes that are not JSON ({reason}), {expected}") from None
    if not isinstance(found, dict):
        raise ResultError(f"{path}: got {shorten(found)}, {expected}")
    return found


def _in_todays_format(result: dict[str, Any]) -> dict[str, Any]:
    """In format 1 the config's keys were elsewhere, and with them its hash; a diverged run was a failed one."""
    new = {**result, "format": RESULT_FORMAT}
    if result["format"] != 1:
        return new
    if result.get("status") == FAILED and str(result.get("error")).startswith(FloatingPointError.__name__):
        new["status"] = DIVERGED
    if isinstance(result.get("config"), dict):
        new["config"] = upgraded(result["config"])
        new["config_hash"] = config_hash(new["config"])
    return new
