"""The schema of configs/benchmark/: every key, its type and its unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from palimpsa.analysis.collect.benchmark_columns import NEED_CUDA, OPERATORS_OF_CASE


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
class OperatorsConfig:
    """configs/benchmark/operators.yaml."""

    name: str = MISSING
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
        """The sizes, once `config.load` has chosen them."""
        return self.presets[self.sizes]

    @property
    def left_out(self) -> list[str]:
        """Operators that were asked for and cannot run on the device."""
        return [name for name in self.operators if name in NEED_CUDA] if self.device == "cpu" else []

    def operators_of(self, case: str) -> list[str]:
        """The operators to measure in a case, in its order."""
        return [name for name in OPERATORS_OF_CASE[case] if name in self.operators and name not in self.left_out]


@dataclass
class TrainingConfig:
    """configs/benchmark/training.yaml."""

    name: str = MISSING
    scale: str = MISSING
    trainer: str = MISSING
    models: list[str] | None = None  # null: every one of configs/model
    lengths: list[int] | None = None  # tokens; null: those in the figure
    num_warmup_steps: int | None = None  # optimiser steps; null: from the scale's cadences
    num_steps: int | None = None  # optimiser steps; null: from the scale's cadences
    lr: float = MISSING
    seed: int = MISSING
    overrides: Any = None  # a mapping of keys of configs/train.yaml to their values; null: none
    results_dir: str = MISSING
    fresh: bool = MISSING


@dataclass
class FirstCallConfig:
    """configs/benchmark/first_call.yaml."""

    name: str = MISSING
    operators: list[str] = MISSING
    passes: list[str] = MISSING  # forward, forward_backward
    dtype: str = MISSING  # of q, k, v and beta
    B: int = MISSING  # batch
    H: int = MISSING  # heads
    K: int = MISSING  # key dim
    V: int = MISSING  # value dim
    lengths: list[int] = MISSING  # tokens
    batches: list[int] = MISSING  # at the first length
    heads: list[int] = MISSING  # at the first length
    results_dir: str = MISSING
    fresh: bool = MISSING
    seed: int = MISSING


@dataclass
class PretrainingConfig:
    """configs/benchmark/pretraining.yaml."""

    name: str = MISSING
    scale: str = MISSING
    trainer: str = MISSING
    models: list[str] | None = None  # of configs/model, lm/NAME; null: a few of those that the device trains
    data: str | None = None  # of scripts/prepare_text.py; null: random tokens
    context: int | None = None  # tokens; null: the scale's
    tokens_per_step: int | None = None  # null: the scale's
    accumulate: int = MISSING
    checkpoint_blocks: bool = MISSING
    num_warmup_steps: int = MISSING  # optimiser steps
    num_steps: int = MISSING  # optimiser steps
    log_every: int = MISSING  # optimiser steps
    lr: float = MISSING
    seed: int = MISSING
    overrides: Any = None  # a mapping of keys of configs/train.yaml to their values; null: none
    results_dir: str = MISSING
    fresh: bool = MISSING


@dataclass
class LlamaSizesConfig:
    """Of transformers' Llama."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING


@dataclass
class EvaluationSpeedConfig:
    """configs/benchmark/evaluation.yaml."""

    name: str = MISSING
    models: list[str] = MISSING  # llama, or of configs/model
    tokenizer: str = MISSING  # a hub's name, or a folder
    task: str = MISSING
    data_dir: str | None = None  # a folder of records; null: the hub
    num_items: int = MISSING
    batch_size: int = MISSING  # rows at a time
    context: int = MISSING  # tokens
    device: str = MISSING
    dtype: str = MISSING
    llama: LlamaSizesConfig = field(default_factory=LlamaSizesConfig)
    results_dir: str = MISSING
    fresh: bool = MISSING
    seed: int = MISSING


BenchmarkConfig = OperatorsConfig | TrainingConfig | FirstCallConfig | PretrainingConfig | EvaluationSpeedConfig
SCHEMAS: dict[str, type] = {
    "operators": OperatorsConfig,
    "training": TrainingConfig,
    "first_call": FirstCallConfig,
    "pretraining": PretrainingConfig,
    "evaluation": EvaluationSpeedConfig,
}
