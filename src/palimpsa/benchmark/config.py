"""configs/benchmark.yaml: its schema, and every mistake told in one line before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from palimpsa.analysis.kernel_schema import NEED_CUDA, OPERATORS, OPERATORS_OF_CASE
from palimpsa.composition import CONFIG_DIR, check_writable, explain
from palimpsa.errors import ConfigError, nearest

CONFIG_NAME = "benchmark"
DTYPES = ("bfloat16", "float32")
DEVICES = ("auto", "cuda", "cpu")


@dataclass
class ShapeConfig:
    """One call of an operator."""

    name: str = MISSING
    B: int = MISSING  # batch
    T: int = MISSING  # tokens
    H: int = MISSING  # heads
    K: int = MISSING  # key dim
    V: int = MISSING  # value dim


@dataclass
class AgainstLengthConfig:
    """Sizes of the cases `lengths` and `throughput`."""

    H: int = MISSING
    K: int = MISSING
    V: int = MISSING
    tokens_per_call: int = MISSING  # B = tokens_per_call / T
    lengths: list[int] = MISSING  # tokens
    decode_batch: int = MISSING
    decode_steps: int = MISSING  # timed together, one after the other


@dataclass
class SizesConfig:
    """What is measured on one kind of device."""

    dtype: str = MISSING  # of q, k, v and beta
    copy_mib: int = MISSING  # of the copy that measures the memory's bandwidth
    table: list[Any] = MISSING  # of ShapeConfig
    decode: ShapeConfig = field(default_factory=ShapeConfig)
    against_length: AgainstLengthConfig = field(default_factory=AgainstLengthConfig)


@dataclass
class ToleranceConfig:
    """Largest relative error against float64, by dtype."""

    bfloat16: float = MISSING
    float32: float = MISSING


@dataclass
class BenchmarkConfig:
    """configs/benchmark.yaml."""

    device: str = MISSING
    sizes: str = MISSING
    cases: list[str] = MISSING
    operators: list[str] = MISSING
    lengths: list[int] | None = None  # tokens; null: those of the sizes
    results_dir: str = MISSING
    fresh: bool = MISSING
    seed: int = MISSING
    warmup_ms: float = MISSING
    repeat_ms: float = MISSING
    tolerance: ToleranceConfig = field(default_factory=ToleranceConfig)
    baseline_tolerance: ToleranceConfig = field(default_factory=ToleranceConfig)
    presets: dict[str, SizesConfig] = MISSING

    @property
    def preset(self) -> SizesConfig:
        """The sizes, once `load` has chosen them."""
        return self.presets[self.sizes]

    @property
    def left_out(self) -> list[str]:
        """Operators that were asked for and cannot run on the device."""
        return [name for name in self.operators if name in NEED_CUDA] if self.device == "cpu" else []

    def operators_of(self, case: str) -> list[str]:
        """The operators to measure in a case, in its order."""
        return [name for name in OPERATORS_OF_CASE[case] if name in self.operators and name not in self.left_out]


def load(overrides: list[str]) -> BenchmarkConfig:
    """Composes a command line's config, checks it, and settles what it leaves to `auto` and null.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    ConfigStore.instance().store(name="benchmark_schema", node=BenchmarkConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            composed = compose(CONFIG_NAME, overrides)
            # Hydra lets `+key=value` add keys that the schema does not know; this merge does not.
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), plain))
        except yaml.YAMLError as error:
            raise ConfigError(f"configs: got a file that is not YAML: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides, CONFIG_NAME, BenchmarkConfig)) from error
    _check_names(config)
    _settle_device(config)
    _check_numbers(config)
    if not any(config.operators_of(case) for case in config.cases):
        where = "on the CPU" if config.device == "cpu" else "in the cases asked for"
        raise ConfigError(f"operators: got {_listed(config.operators)}, expected at least one that is measured {where}")
    if not config.results_dir:
        raise ConfigError("results_dir: got an empty string, expected a directory")
    check_writable(config.results_dir, Path(config.results_dir))
    return config


def _check_names(config: BenchmarkConfig) -> None:
    _choice("device", config.device, DEVICES)
    _choice("sizes", config.sizes, ["auto", *config.presets])
    for key, values, choices in (
        ("cases", config.cases, OPERATORS_OF_CASE),
        ("operators", config.operators, OPERATORS),
    ):
        _several(key, values)
        for value in values:
            _choice(key, value, choices)


def _settle_device(config: BenchmarkConfig) -> None:
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


def _check_numbers(config: BenchmarkConfig) -> None:
    where, sizes = f"presets.{config.sizes}", config.preset
    _choice(f"{where}.dtype", sizes.dtype, DTYPES)
    _positive("warmup_ms", config.warmup_ms)
    _positive("repeat_ms", config.repeat_ms)
    if config.seed < 0:
        raise ConfigError(f"seed: got {config.seed}, expected >= 0")
    for dtype in DTYPES:
        _positive(f"tolerance.{dtype}", getattr(config.tolerance, dtype))
        _positive(f"baseline_tolerance.{dtype}", getattr(config.baseline_tolerance, dtype))
    _positive(f"{where}.copy_mib", sizes.copy_mib)
    sizes.table = [_shape(f"{where}.table[{place}]", shape) for place, shape in enumerate(sizes.table)]
    _several(f"{where}.table", [shape.name for shape in sizes.table])
    shapes = {f"{where}.table[{place}]": shape for place, shape in enumerate(sizes.table)}
    for key, shape in (shapes | {f"{where}.decode": sizes.decode}).items():
        for letter in "BTHKV":
            _positive(f"{key}.{letter}", getattr(shape, letter))
    if sizes.decode.T != 1:
        raise ConfigError(f"{where}.decode.T: got {sizes.decode.T}, expected 1, a single token")
    against = sizes.against_length
    for name in ("H", "K", "V", "tokens_per_call", "decode_batch", "decode_steps"):
        _positive(f"{where}.against_length.{name}", getattr(against, name))
    lengths = config.lengths or []
    _several("lengths", lengths)
    for length in lengths:
        _positive("lengths", length)
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


def _listed(values: Iterable[Any]) -> str:
    return f"[{', '.join(map(str, values))}]"


def _choice(key: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{key}: got {value!r}, expected one of {', '.join(choices)}{nearest(value, choices)}")


def _several(key: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{key}: got {_listed(values)}, expected one or more, each once")


def _positive(key: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{key}: got {value}, expected > 0")
