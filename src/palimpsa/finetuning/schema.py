"""The schema of configs/demonstrate.yaml: which runs a demonstration compares, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsa.config.checks import check_ranges, check_writable
from palimpsa.config.compose import compose_values
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert, key
from palimpsa.config.schema import MAX_SEED
from palimpsa.conversion.command import metaplastic_words

CONFIG_NAME = "demonstrate"


@dataclass
class DemonstrationConfig:
    """A model is trained, and trained on twice for the same steps: as it is, and converted.

    Args:
        models: files of configs/model without importances.
        seeds: of the trained models; each is a pair.
        seed_offset: what is added to a seed for what is trained on, which so draws other data.
        convert: options of `scripts/convert.py metaplastic`.
        common, source, further, converted: command lines of scripts/train.py: of all runs, of the first training, of
            what is trained on either way, and of the converted alone.
        evaluation: command line of scripts/evaluate.py, for each run in the end; null: what training itself tests.
    """

    name: str = key(names_files=True)
    models: list[str] = key()
    seeds: list[int] = key()
    seed_offset: int = key(minimum=0, maximum=MAX_SEED)
    convert: str = key("")
    common: list[str] = key()
    source: list[str] = key()
    further: list[str] = key()
    converted: list[str] = key()
    evaluation: list[str] | None = key(None)


@dataclass
class DemonstrateConfig:
    """configs/demonstrate.yaml.

    Args:
        results_dir: runs/, converted/ and pairs.csv are made in it.
    """

    results_dir: str = key()
    demonstration: DemonstrationConfig = key()


def load(overrides: Sequence[str]) -> DemonstrateConfig:
    """A command line's config, composed and checked: the name of a file of configs/demonstration, and overrides.

    Those of `results_dir` and `demonstration` are of configs/demonstrate.yaml; all others are of scripts/train.py, for
    all runs: the data, a launcher, a scale.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    names = [one for one in overrides if "=" not in one]
    if len(names) != 1:
        raise ConfigError(f"demonstration: got {' '.join(names) or 'none'}, expected a file of configs/demonstration")
    own = [one for one in overrides if one.lstrip("+").startswith(("results_dir=", "demonstration."))]
    others = [one for one in overrides if one not in own and one not in names]
    config: DemonstrateConfig = convert(
        DemonstrateConfig, compose_values([f"demonstration={names[0]}", *own], CONFIG_NAME)
    )
    check_ranges(config)
    plan = config.demonstration
    plan.common += others
    metaplastic_words(plan.convert, "demonstration.convert")
    for name in ("models", "seeds"):
        values = getattr(plan, name)
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"demonstration.{name}: got {values}, expected at least one, each once")
    wrong = [seed for seed in plan.seeds if not 0 <= seed <= MAX_SEED - plan.seed_offset]
    if wrong:
        raise ConfigError(f"demonstration.seeds: got {wrong[0]}, expected 0 to {MAX_SEED - plan.seed_offset}")
    if not config.results_dir or "\0" in config.results_dir:
        raise ConfigError(f"results_dir: got {config.results_dir!r}, expected a directory")
    check_writable(config.results_dir, Path(config.results_dir))
    return config
