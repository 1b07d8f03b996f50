"""configs/benchmark.yaml and its group: composed, and every mistake told in one line before any work."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from palimpsa.analysis.collect.benchmark_columns import OPERATORS, OPERATORS_OF_CASE, PASSES
from palimpsa.benchmark.checks import as_list, check_choice, check_positive, check_several
from palimpsa.benchmark.schema import SCHEMAS, BenchmarkConfig, FirstCallConfig, OperatorsConfig, ShapeConfig
from palimpsa.config.checks import check_writable
from palimpsa.config.errors import ConfigError, nearest
from palimpsa.config.explain import explain
from palimpsa.config.keys import schema_keys
from palimpsa.config.schema import CONFIG_DIR

CONFIG_NAME = "benchmark"
DTYPES = ("bfloat16", "float32")
DEVICES = ("auto", "cuda", "cpu")


def load(overrides: list[str]) -> BenchmarkConfig:
    """Composes a command line's config and checks its types.

    The operators' and the first calls' are checked all through, and what they leave to `auto` and null is settled;
    `training_config.plan_runs` and `pretraining.plan` do that for the training's.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    config = _compose(overrides)
    if not config.results_dir:
        raise ConfigError("results_dir: got an empty string, expected a directory")
    if isinstance(config, OperatorsConfig):
        _settle_operators(config)
    if isinstance(config, FirstCallConfig):
        _check_first_calls(config)
    check_writable(config.results_dir, Path(config.results_dir))
    return config


def _compose(overrides: list[str]) -> BenchmarkConfig:
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_benchmark_schema", node=schema)
    # Known before Hydra is asked: which keys there are is part of what an error says.
    benchmark = next((_value(word) for word in reversed(overrides) if _key(word) == CONFIG_NAME), "operators")
    check_choice(CONFIG_NAME, benchmark, SCHEMAS)
    schema = SCHEMAS[benchmark]
    # Folders of configs/ too, which Hydra would look for in the defaults list.
    groups = {key for key in schema_keys([], schema) if (CONFIG_DIR / key).is_dir()}
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            composed = compose(CONFIG_NAME, [word for word in overrides if _key(word) not in groups])
            for word in overrides:
                if _key(word) in groups:
                    OmegaConf.update(composed, _key(word), _value(word))
            check_choice("name", composed.name, [benchmark])
            # Hydra lets `+key=value` add keys that the schema does not know; this merge does not.
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
        except yaml.YAMLError as error:
            raise ConfigError(f"configs: got a file that is not YAML: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides)) from error
    return config


def _key(word: str) -> str:
    return word.partition("=")[0]


def _value(word: str) -> Any:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    if override.is_sweep_override():
        raise ConfigError(f"{word}: got several values, expected one")
    return override.value()


def _check_first_calls(config: FirstCallConfig) -> None:
    for key, values, choices in (("operators", config.operators, OPERATORS), ("passes", config.passes, PASSES)):
        check_several(key, values)
        for value in values:
            check_choice(key, value, choices)
    check_choice("dtype", config.dtype, DTYPES)
    for key in ("B", "H", "K", "V"):
        check_positive(key, getattr(config, key))
    check_several("lengths", config.lengths)
    for key in ("lengths", "batches", "heads"):
        for value in getattr(config, key):
            check_positive(key, value)
    if config.seed < 0:
        raise ConfigError(f"seed: got {config.seed}, expected >= 0")


def _settle_operators(config: OperatorsConfig) -> None:
    _check_names(config)
    _settle_device(config)
    _check_numbers(config)
    if not any(config.operators_of(case) for case in config.cases):
        where = "on the CPU" if config.device == "cpu" else "in the cases asked for"
        raise ConfigError(f"operators: got {as_list(config.operators)}, expected at least one that is measured {where}")


def _check_names(config: OperatorsConfig) -> None:
    check_choice("device", config.device, DEVICES)
    check_choice("sizes", config.sizes, ["auto", *config.presets])
    for key, values, choices in (
        ("cases", config.cases, OPERATORS_OF_CASE),
        ("operators", config.operators, OPERATORS),
    ):
        check_several(key, values)
        for value in values:
            check_choice(key, value, choices)


def _settle_device(config: OperatorsConfig) -> None:
    import torch

    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("device: got cuda, expected cpu or auto, because PyTorch finds no NVIDIA GPU here")
    if config.device == "auto":
        config.device = "cuda" if available else "cpu"
    if config.sizes == "auto":
        config.sizes = "h200" if config.device == "cuda" else "cpu"
    if config.lengths is None:
        config.lengths = config.preset.against_length.lengths


def _check_numbers(config: OperatorsConfig) -> None:
    where, sizes = f"presets.{config.sizes}", config.preset
    check_choice(f"{where}.dtype", sizes.dtype, DTYPES)
    check_positive("warmup_ms", config.warmup_ms)
    check_positive("repeat_ms", config.repeat_ms)
    if config.seed < 0:
        raise ConfigError(f"seed: got {config.seed}, expected >= 0")
    for dtype in DTYPES:
        check_positive(f"tolerance.{dtype}", getattr(config.tolerance, dtype))
        check_positive(f"baseline_tolerance.{dtype}", getattr(config.baseline_tolerance, dtype))
    check_positive(f"{where}.copy_mib", sizes.copy_mib)
    sizes.table = [_shape(f"{where}.table[{place}]", shape) for place, shape in enumerate(sizes.table)]
    check_several(f"{where}.table", [shape.name for shape in sizes.table])
    shapes = {f"{where}.table[{place}]": shape for place, shape in enumerate(sizes.table)}
    for key, shape in (shapes | {f"{where}.decode": sizes.decode}).items():
        for letter in "BTHKV":
            check_positive(f"{key}.{letter}", getattr(shape, letter))
    if sizes.decode.T != 1:
        raise ConfigError(f"{where}.decode.T: got {sizes.decode.T}, expected 1, a single token")
    against = sizes.against_length
    for name in ("H", "K", "V", "tokens_per_call", "decode_batch", "decode_steps"):
        check_positive(f"{where}.against_length.{name}", getattr(against, name))
    lengths = config.lengths or []
    check_several("lengths", lengths)
    for length in lengths:
        check_positive("lengths", length)
        if against.tokens_per_call % length:
            raise ConfigError(
                f"lengths: got {length}, expected divisors of {where}.against_length.tokens_per_call = "
                f"{against.tokens_per_call}"
            )


def _shape(key: str, shape: Any) -> ShapeConfig:
    """An entry of a table. Checked here: OmegaConf's own errors do not say where in a list they are."""
    if not isinstance(shape, dict):
        raise ConfigError(f"{key}: got {shape!r}, expected {{name, B, T, H, K, V}}")
    try:
        made: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ShapeConfig), shape))
    except OmegaConfBaseException as error:
        known = [field.name for field in fields(ShapeConfig)]
        reason = str(error).splitlines()[0]
        name = str(error.full_key or error.key or "")
        if name not in known:
            reason = f"unknown key, expected one of {', '.join(known)}{nearest(name, known)}"
        raise ConfigError(f"{key}.{name}: {reason}") from error
    return made
