"""Property 7 of language models: at twice the rate 300 steps stay finite, and memories are fp32 under bf16 too."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from palimpsa.config.schema import CONFIG_DIR, typed
from palimpsa.evaluation.trained import load_trained
from palimpsa.mixers.base import MixerCache
from palimpsa.text.shards import ShardWriter
from palimpsa.text.tokenizers import load_tokenizer
from palimpsa.training.run import run

NOVEL = CONFIG_DIR.parent / "src/palimpsa/text/sample/persuasion.txt"
SMALL = (
    *("task=commonsense", "task.num_steps=300", "task.context=64", "task.tokens_per_step=128"),
    *("task.validation_every=300", "task.validation_tokens=2048", "task.verify=sizes"),
    *("model.d_model=64", "model.num_layers=2", "trainer.log_every=1", "trainer.probe_every=300"),
    *("trainer.checkpoint_every=300", "trainer.progress_bar=false", "logger=csv"),
)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Half of the shipped novel, by bytes; its end for validation."""
    folder, tokenizer = tmp_path_factory.mktemp("text"), load_tokenizer("bytes")
    novel = NOVEL.read_bytes().decode("utf-8")
    for split, part in (("train", novel[:200_000]), ("validation", novel[-5_000:])):
        writer = ShardWriter(folder / split, tokenizer=tokenizer.facts)
        for start in range(0, len(part), 1_000):
            document = part[start : start + 1_000]
            writer.add(tokenizer.encode(document), len(document.encode("utf-8")))
        writer.finish()
    return folder


@pytest.mark.parametrize(
    ("model", "precision"),
    [("palimpsa_d", "bf16-mixed"), ("palimpsa_m", "bf16-mixed")],
)
def test_300_steps_at_twice_the_default_rate_stay_finite(model, precision, text, compose_config, tmp_path, monkeypatch):
    default = compose_config("task=commonsense").optimizer.lr
    own = (f"model=lm/{model}_tiny", f"trainer.precision={precision}", f"optimizer.lr={2 * default}")
    config = typed(compose_config(*SMALL, *own, f"task.data={text}", f"results_dir={tmp_path}"))
    result = run(config)
    assert result["status"] == "finished"
    curves = pd.read_csv(Path(config.run_dir) / "history.csv")
    trained = curves.loc[curves["loss"].notna()]
    assert len(trained) == 300
    assert np.isfinite(trained[["loss", "gradient_norm"]].to_numpy()).all()
    # And they learn: 1.9 nats in 300 steps. At 200 times the rate, finite too, it is 2.5.
    assert trained["loss"].iloc[-20:].mean() < 2.2 < trained["loss"].iloc[0]
    network = load_trained(config.run_dir).model
    assert all(bool(torch.isfinite(one).all()) for one in network.parameters())
    # What the memory is after a context that is 16 times as long, whatever its products are computed in.
    kept: list[torch.Tensor] = []
    keep_state = MixerCache.keep_state

    def watch(cache, new):
        kept.extend(new)
        keep_state(cache, new)

    monkeypatch.setattr(MixerCache, "keep_state", watch)
    tokens = torch.from_numpy(np.frombuffer(NOVEL.read_bytes()[:1_024], np.uint8).astype(np.int64))[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        network(tokens, caches=network.new_caches(1))
    assert len(kept) == 2 * 2, "mean and importance of two layers"
    for state in kept:
        assert state.dtype == torch.float32
        assert bool(torch.isfinite(state).all())
