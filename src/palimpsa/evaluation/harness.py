"""lm-evaluation-harness on a model of ours or of transformers': its definitions and its metrics, our batches.

Imports the harness, and is imported late.
"""

# n items of a task

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.harness_tasks import AVERAGES, BOTH_WAYS, TASKS, write_definitions
from palimpsa.evaluation.models.codecs import Codec
from palimpsa.evaluation.models.scoring import Request, Scorer
from palimpsa.evaluation.statistics import (
    Measured,
    TaskResult,
    check_measured,
    mean_accuracy,
    mean_perplexity,
    ratio_perplexity,
)
from palimpsa.evaluation.unfinished import Unfinished, nan_where_null, plain_numbers
from palimpsa.text.hub import PROBE_TIMEOUT_S

# Of the hub's data one set that is asked for, to know whether the hub is there.
PROBED = "EleutherAI/lambada_openai"


class HarnessModel(TemplateLM):
    """What the harness asks, answered by a `Scorer`.

    As the harness's own HFLM it reads at most `max_length` tokens before each target, the last ones, and begins a text
    without a context with the prefix token. An answer of more than `max_length` tokens, which HFLM refuses, is scored
    in pieces of half of that, each from what is before it.

    Args:
        scorer: that scores.
        codec: text to tokens.
        max_length: tokens that are read before a target, >= 2.

    Attributes:
        num_truncated: how many requests had more before a target than was read, since it was set to 0.
        num_nan: how many log-likelihoods were no number, since it was set to 0.
    """

    def __init__(self, scorer: Scorer, codec: Codec, max_length: int) -> None:
        super().__init__()
        if max_length < 2:
            raise ValueError(f"max_length: got {max_length}, expected >= 2")
        self._scorer = scorer
        self._codec = codec
        self.max_length = max_length
        self.num_truncated = 0
        self.num_nan = 0

    @property
    def eot_token_id(self) -> int:
        return self._codec.prefix_token

    @property
    def prefix_token_id(self) -> int:
        return self._codec.prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._codec.encode(string, add_special_tokens)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pieces = [self._pieces([*context, *answer], len(answer)) for _, context, answer in requests]
        self.num_truncated += sum(
            len(one[0].tokens) < len(context) + len(answer)
            for one, (_, context, answer) in zip(pieces, requests, strict=True)
        )
        return [(sum(likelihoods), all(greedy)) for likelihoods, greedy in self._score(pieces)]

    def _pieces(self, tokens: list[int], num_targets: int) -> list[Request]:
        if num_targets <= self.max_length:
            return [Request(tokens[-(self.max_length + 1) :], num_targets)]
        step, first = self.max_length // 2, len(tokens) - num_targets
        pieces = []
        for start in range(first, len(tokens), step):
            stop = min(start + step, len(tokens))
            pieces.append(Request(tokens[max(0, stop - self.max_length - 1) : stop], stop - start))
        return pieces

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        texts = [self.tok_encode(request.args[0]) for request in requests]
        windows = [
            [
                Request([*context, *targets], len(targets))
                for context, targets in map(
                    make_disjoint_window,
                    get_rolling_token_windows(
                        token_list=tokens,
                        prefix_token=self.prefix_token_id,
                        max_seq_len=self.max_length,
                        context_len=1,
                    ),
                )
            ]
            for tokens in texts
        ]
        self.num_truncated += sum(len(one) > 1 for one in windows)
        return [sum(likelihoods) for likelihoods, _ in self._score(windows)]

    def _score(self, groups: Sequence[Sequence[Request]]) -> list[tuple[list[float], list[bool]]]:
        """Log-likelihoods, and whether greedy, of each request of each group."""
        scores = iter(self._scorer.score([one for group in groups for one in group]))
        found = [[next(scores) for _ in group] for group in groups]
        self.num_nan += sum(math.isnan(one.log_likelihood) for group in found for one in group)
        return [([one.log_likelihood for one in group], [one.is_greedy for one in group]) for group in found]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        raise NotImplementedError(f"no task of {', '.join(TASKS)} has the model write")


@dataclass(frozen=True)
class HarnessResult:
    """tasks: by name. averages: of `AVERAGES`, those whose tasks were all scored. files: the data, see
    `RedirectedTasks`. notes: what of a definition was replaced."""

    tasks: dict[str, TaskResult]
    averages: dict[str, Measured]
    files: dict[str, dict[str, str]]
    notes: list[str]


def run_harness(
    model: Any,
    names: Sequence[str],
    *,
    data_dir: str | None,
    limit: int | None,
    unfinished: Unfinished | None = None,
    report: Callable[[str, TaskResult, bool], None] = lambda name, result, was_known: None,
) -> HarnessResult:
    """Scores a model on tasks, zero-shot.

    Args:
        model: of the harness's interface: a `HarnessModel`, or its own HFLM.
        names: of `harness_tasks.TASKS`.
        data_dir: see `harness_tasks.write_definitions`.
        limit: items a task, the first ones; None: all.
        unfinished: where the result of each task is kept, and found again.
        report: called with each task that is done, and whether it was found.

    Raises:
        ConfigError: see `harness_tasks.write_definitions`; or the hub cannot be reached; or what the model says is no
            number, before anything of the task is kept.
    """
    # It warns of what is meant: tasks by path, contexts that are cut.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    results: dict[str, TaskResult] = {}
    with tempfile.TemporaryDirectory() as folder:
        redirected = write_definitions(names, data_dir, Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        for name in names:
            started = time.perf_counter()
            if name in redirected.files:
                loaded, data = None, redirected.files[name]["sha256"]
            else:
                loaded = _load(manager, name, data_dir)
                data = _records_sha256(loaded["tasks"][name], limit)
            follows_from = {"task": name, "limit": limit, "data": data}
            known = None if unfinished is None else unfinished.find(name, follows_from)
            if known is not None:
                results[name] = _task_result(known)
            else:
                found = _score(model, loaded or _load(manager, name, data_dir), name, limit, started)
                _check(model, "this model" if unfinished is None else unfinished.model, name, found)
                results[name] = found
                if unfinished is not None:
                    unfinished.keep(name, follows_from, plain_numbers(results[name]))
            report(name, results[name], known is not None)
    return HarnessResult(results, averages(results), redirected.files, redirected.notes)


def _score(model: Any, loaded: Any, name: str, limit: int | None, started: float) -> TaskResult:
    if isinstance(model, HarnessModel):
        model.num_truncated = model.num_nan = 0
    samples = _samples(model, loaded, name, limit)
    return TaskResult(
        metrics={metric: _measure(metric, samples) for metric in TASKS[name].metrics},
        num_items=len(samples),
        num_truncated=model.num_truncated if isinstance(model, HarnessModel) else 0,
        seconds=time.perf_counter() - started,
    )


def _check(model: Any, model_name: str, name: str, found: TaskResult) -> None:
    """Raises ConfigError where a metric is no number, or is of answers that were chosen without one."""
    for metric, one in found.metrics.items():
        check_measured(model_name, f"{metric} of {name}", one.value, one.stderr)
    if isinstance(model, HarnessModel) and model.num_nan:
        raise ConfigError(
            f"{name}: got nan for {model.num_nan:,} log-likelihoods of {model_name}, expected finite numbers: what "
            "this model predicts is out of range"
        )


def _task_result(known: dict[str, Any]) -> TaskResult:
    metrics = {
        metric: Measured(one["value"], nan_where_null(one["stderr"])) for metric, one in known["metrics"].items()
    }
    return TaskResult(**{**known, "metrics": metrics})


def _records_sha256(task: Any, limit: int | None) -> str:
    """SHA-256, in hex, of the records of a task that are scored, wherever they came from."""
    found = hashlib.sha256()
    for record in itertools.islice(task.eval_docs, limit):
        found.update(json.dumps(record, sort_keys=True, default=str).encode())
    return found.hexdigest()


def _load(manager: TaskManager, name: str, data_dir: str | None) -> Any:
    import datasets

    # The harness's own bars, of files that are read in a second.
    datasets.disable_progress_bars()
    try:
        if data_dir is None:
            _ask_for_the_hub()
        loaded = manager.load([name])
    except Exception as error:
        # Of the network, the hub or a file: each library on the way has errors of its own.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if data_dir is not None:
            raise ConfigError(f"evaluation.data_dir: the records of {name} cannot be read: {reason}") from error
        raise ConfigError(f"evaluation: no data of {name} ({reason.strip()}); expected {BOTH_WAYS}") from error
    loaded["tasks"][name].set_config(key="num_fewshot", value=0)
    return loaded


def _ask_for_the_hub() -> None:
    """Raises, in seconds, where the hub cannot be reached: `datasets` would try for a minute, and say each time."""
    from huggingface_hub import HfApi, constants

    # Then what was loaded before is taken, and nobody is asked.
    if not constants.HF_HUB_OFFLINE:
        HfApi().dataset_info(PROBED, timeout=PROBE_TIMEOUT_S)


def _samples(model: Any, loaded: Any, name: str, limit: int | None) -> list[dict[str, Any]]:
    """What the harness says of each item."""
    found: Any = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    samples, task = found["samples"][name], loaded["tasks"][name]
    # Of winogrande the choices are contexts, and an answer that is none of them is an error of the harness.
    for sample in samples if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input else ():
        # The harness counts an answer that is none of the choices as wrong, whatever the model says.
        target = sample["target"]
        if target not in task.doc_to_choice(sample["doc"]) if isinstance(target, str) else target < 0:
            raise ConfigError(
                f"{name}: got {target!r} for the answer of record {sample['doc_id'] + 1}, expected the number of a "
                "choice: where answers are kept back there is nothing to score"
            )
    return samples


def _measure(metric: str, samples: Sequence[dict[str, Any]]) -> Measured:
    values = np.array([sample[metric] for sample in samples], dtype=np.float64)
    if metric == "word_perplexity":
        return ratio_perplexity(values[:, 0], values[:, 1])
    return mean_perplexity(values) if metric == "perplexity" else mean_accuracy(values)


def averages(results: dict[str, TaskResult]) -> dict[str, Measured]:
    """`AVERAGES` of the tasks' accuracies: items of different tasks are independent, so that errors add as squares."""
    found = {}
    for name, tasks in AVERAGES.items():
        if all(task in results for task in tasks):
            ones = [results[task].metrics[str(TASKS[task].accuracy)] for task in tasks]
            stderr = math.sqrt(sum(one.stderr**2 for one in ones)) / len(ones)
            found[name] = Measured(sum(one.value for one in ones) / len(ones), stderr)
    return found
