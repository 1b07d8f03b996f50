"""A run of a tiny language model, as one leaves it, and the command line that converts it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from palimpsa.config.compose import compose_config
from palimpsa.config.schema import typed
from palimpsa.model.build import build_model
from palimpsa.text.command import prepare_text_main
from palimpsa.text.manifest import read_manifest

SIZES = ("model.d_model=32", "model.num_layers=1", "model.channel_width=32", "model.mixer.num_heads=2")


@pytest.fixture(scope="session")
def convert():
    """scripts/convert.py in this process: `convert("export", checkpoint, folder)` is its exit code."""

    def convert(*arguments: object) -> int:
        # Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
        from palimpsa.conversion.command import convert_main

        return convert_main([str(one) for one in arguments])

    return convert


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Token shards of the shipped text."""
    folder = tmp_path_factory.mktemp("data")
    assert prepare_text_main(["source=sample", "tokenizer=bytes", f"directory={folder}"]) == 0
    return folder


@pytest.fixture
def run(data, tmp_path):
    """Writes the directory of a run on them, as a run leaves it: `run("palimpsa_m_tiny")`."""

    def write(model: str = "palimpsa_d_tiny") -> Path:
        from palimpsa.training.checkpoint import CHECKSUM_KEY, checksum

        overrides = ["task=commonsense", f"task.data={data}", f"model=lm/{model}", *SIZES, "task.context=64"]
        config = dataclasses.asdict(typed(compose_config(overrides)))
        config["task"]["train_digest"] = read_manifest(data / "train").digest
        network = build_model(typed(compose_config(overrides)).model, 3)
        content = {
            "state_dict": {f"model.{name}": weight for name, weight in network.state_dict().items()},
            "model_config": config["model"],
            "global_step": 70,
        }
        directory = tmp_path / "run"
        (directory / "checkpoints").mkdir(parents=True)
        torch.save({**content, CHECKSUM_KEY: checksum(content)}, directory / "checkpoints/last.ckpt")
        (directory / "config.json").write_text(json.dumps(config))
        stages = [{"validation_loss": 1.23456, "validation_perplexity_per_byte": 3.5}]
        provenance = {"git_revision": "abc123", "git_dirty": True, "device": "a | b", "versions": {"torch": "1"}}
        result = {"stages": stages, "provenance": provenance, "config_hash": "0f"}
        (directory / "result.json").write_text(json.dumps(result))
        return directory

    return write
