"""Models whose memory is looked into."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recall_run(tmp_path_factory, tiny_overrides) -> Path:
    """The directory of a run of 19 steps that has kept its last weights."""
    # Late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed
    from palimpsa.training.run import run

    results = tmp_path_factory.mktemp("recall")
    config = typed(compose_config([*tiny_overrides, "trainer.keep_final=true", f"results_dir={results}"]))
    assert run(config)["status"] == "finished"
    return Path(config.run_dir)


@pytest.fixture
def inspect():
    """scripts/inspect_memory.py in this process: `inspect(RUN, "--out", folder)` is its exit code."""

    def inspect(*arguments: object) -> int:
        from palimpsa.evaluation.memory.command import inspect_memory_main

        return inspect_memory_main([str(one) for one in arguments])

    return inspect


@pytest.fixture
def make_source():
    """An untrained model of two layers around a mixer: `make_source("GLA", num_heads=2)`."""

    def make(mixer: str, *, num_heads: int = 2, num_layers: int = 2, **options):
        import torch

        from palimpsa.evaluation.memory.source import Source
        from palimpsa.model.build import build_skeleton

        arguments = {"_target_": f"palimpsa.mixers.{mixer}", "num_heads": num_heads, "head_k_dim": 4, "head_v_dim": 4}
        skeleton = {"vocab_size": 32, "d_model": 16, "num_layers": num_layers, "norm": "layernorm", "norm_eps": 1e-5}
        rest = {"channel_mixer": "none", "channel_width": None, "init_std": None, "mixer": {**arguments, **options}}
        model = build_skeleton({**skeleton, **rest}, torch.Generator().manual_seed(0)).eval()
        return Source("model", "A model", mixer, model, None, {"weights_sha256": "0"}, Path("nowhere"))

    return make
