"""What several test modules share: composed configs, and runs of a second or two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.schema import register_schema

# No test may wait for a network or ask for an account.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

TINY = (
    "scale.d_model=16",
    "scale.num_heads=2",
    "scale.head_k_dim=4",
    "scale.wide_head_k_dim=8",
    "scale.head_v_dim=4",
    "task.vocab_size=32",
    "task.tokens_per_step=64",
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:7,in_figure:false},{seq_len:16,num_pairs:4,max_steps:12}]",
    "task.validation_every=5",
    "task.num_validation=8",
    "task.num_test=16",
    "trainer.log_every=3",
    "trainer.probe_every=4",
    "trainer.checkpoint_every=4",
    "trainer.progress_bar=false",
    "logger=csv",
)

TINY_BENCHMARK = (
    "device=cpu",
    "sizes=cpu",
    "warmup_ms=0.1",
    "repeat_ms=0.1",
    "presets.cpu.copy_mib=1",
    "presets.cpu.table=[{name:tiny,B:2,T:20,H:2,K:4,V:6}]",
    "presets.cpu.decode={name:tiny,B:2,T:1,H:2,K:4,V:6}",
    "presets.cpu.against_length={H:2,K:4,V:6,tokens_per_call:32,lengths:[16,32],decode_batch:2,decode_steps:2}",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked gpu where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _compose(*overrides: str) -> DictConfig:
    register_schema()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture
def compose_config():
    """configs/train.yaml with overrides: `compose_config("model=gla")`."""
    return _compose


@pytest.fixture
def tiny_overrides() -> tuple[str, ...]:
    """The command line of a run of 19 steps."""
    return TINY


@pytest.fixture
def tiny_benchmark() -> tuple[str, ...]:
    """The command line of a benchmark of a few seconds, on the CPU."""
    return TINY_BENCHMARK


@pytest.fixture
def tiny_config(tmp_path: Path):
    """Composes a run of 19 steps below tmp_path: `tiny_config("model=gla", ...)`."""

    def make(*overrides: str) -> DictConfig:
        return _compose(*TINY, f"results_dir={tmp_path}", *overrides)

    return make
