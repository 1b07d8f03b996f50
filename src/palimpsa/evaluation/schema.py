"""The schema of configs/evaluate.yaml: every key, its range and its unit; and a command line as such a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsa.config.checks import check_ranges, check_writable
from palimpsa.config.compose import compose_config, compose_values
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert, key
from palimpsa.config.schema import MAX_SEED
from palimpsa.evaluation.harness_tasks import check_task_names

# What `make pretrain` trains where nothing else is asked for.
DEMONSTRATION = ("task=commonsense", "model=lm/palimpsa_d_tiny", "scale=laptop", "trainer=cpu")


@dataclass
class HarnessConfig:
    """Zero-shot tasks of lm-evaluation-harness.

    Args:
        tasks: of `harness_tasks.TASKS`, by the harness's names; none: only the long-range measures.
        data_dir: a folder of NAME.jsonl; null: the hub's.
        limit: items a task, the first ones; null: all.
        batch_size: rows at a time; no number depends on it but for rounding.
        max_length: tokens read before a target; null: those of the context that the model was trained on.
        prefix_token: the id that a text without a context begins with; null: the one before it in training.
    """

    tasks: list[str] = key()
    data_dir: str | None = key(None)
    limit: int | None = key(None, minimum=1, unit="items")
    batch_size: int = key(minimum=1, unit="rows")
    max_length: int | None = key(None, minimum=2, unit="tokens")
    prefix_token: int | None = key(None, minimum=0)


@dataclass
class LongRangeConfig:
    """Long-range measures: palimpsa.evaluation.perplexity and palimpsa.evaluation.recall.

    Args:
        measures: of `long_range.MEASURES`; none: only the tasks.
        documents: a file of texts, JSON lines with `text`; null: the validation split of the training data.
        num_tokens: of each document, the first ones; shorter documents are left out.
        max_documents: the first ones; null: all.
        max_count: how often a bigram may stand in the training text to be called rare.
        num_books: phonebooks, and texts to be copied, of each length.
        book_sizes: entries of a phonebook.
        copy_lengths: tokens to be copied.
        seed: of phonebooks and copies.
    """

    measures: list[str] = key()
    documents: str | None = key(None)
    num_tokens: int = key(minimum=16, unit="tokens")
    max_documents: int | None = key(None, minimum=1)
    max_count: int = key(minimum=0)
    num_books: int = key(minimum=2)
    book_sizes: list[int] = key()
    copy_lengths: list[int] = key()
    seed: int = key(minimum=0, maximum=MAX_SEED)


@dataclass
class EvaluateConfig:
    """configs/evaluate.yaml.

    Args:
        checkpoint: the directory of a run, or a Hugging Face folder; null: the run of `make pretrain`.
        name: of the result, its folder and its rows; null: the run's or the folder's, and the strength that is given.
        strength: what every precision of a Palimpsa is multiplied by, whatever its config says: 0 leaves importances
            out, 1 is what its weights say; null: as the config says.
        training_data: the token shards that it was trained on; null: a run says where they were.
        device: auto is the GPU, where there is one.
        dtype: of products, beside weights in float32; auto is bfloat16 on a GPU, float32 on a CPU.
        results_dir: evaluations/NAME/result.json, and commonsense/ for tables, are made in it.
    """

    checkpoint: str | None = key(None)
    name: str | None = key(None)
    strength: float | None = key(None, minimum=0, maximum=1)
    training_data: str | None = key(None)
    device: str = key(choices=("auto", "cpu", "cuda"))
    dtype: str = key(choices=("auto", "float32", "bfloat16"))
    results_dir: str = key()
    evaluation: HarnessConfig = key()
    long_range: LongRangeConfig = key()


def load(overrides: Sequence[str]) -> EvaluateConfig:
    """A command line's config, composed and checked; `checkpoint` is never null in it.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    from palimpsa.evaluation.long_range import check_measures

    config: EvaluateConfig = convert(EvaluateConfig, compose_values(overrides, "evaluate"))
    check_ranges(config)
    if not config.results_dir or "\0" in config.results_dir:
        raise ConfigError(f"results_dir: got {config.results_dir!r}, expected a directory")
    check_task_names(config.evaluation.tasks)
    check_measures(config.long_range)
    if not (config.evaluation.tasks or config.long_range.measures):
        raise ConfigError("evaluation.tasks: got [] with long_range.measures=[], expected something to measure")
    check_writable(config.results_dir, Path(config.results_dir))
    if config.checkpoint is None:
        config.checkpoint = compose_config([*DEMONSTRATION, f"results_dir={config.results_dir}"]).run_dir
    return config
