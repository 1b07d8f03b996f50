"""A step that is replayed as a CUDA graph is the step that Lightning runs, to the last bit."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.runs.directory import RunDirectory
from palimpsa.training.run import run

SIZES = ("task.vocab_size=64", "scale.head_k_dim=16", "scale.head_v_dim=16", "trainer=gpu")
TWO_STAGES = ("task.stages=[{seq_len:8,num_pairs:2,max_steps:9},{seq_len:16,num_pairs:4,max_steps:9}]",)
# Five batches of 4 and one of 2 an epoch.
EPOCHS = (
    *("task=mqar_scratch", "task.stages=null", "task.seq_len=16"),
    *("task.num_train_examples=22", "task.num_epochs=3"),
)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What torch.compile keeps on disk: torch 2.11 times some reductions, and a test beside this may choose others."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def trained(tiny_config, *overrides):
    """The curves without times, and the weights and moments at the end."""
    cfg = tiny_config(*SIZES, *overrides)
    run(cfg)
    checkpoint = torch.load(RunDirectory(cfg.run_dir).checkpoint_file, weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"]
    curves = pd.read_csv(Path(cfg.run_dir) / "history.csv").drop(columns="tokens_per_s")
    return curves.to_csv(), checkpoint["state_dict"], {str(key): value for key, value in moments.items()}


@pytest.mark.parametrize("model", ["palimpsa_d", "palimpsa_m", "gated_deltanet", "transformer"])
@pytest.mark.parametrize(
    "stages", [TWO_STAGES, EPOCHS, (*EPOCHS, "recipe=mqar_authors")], ids=["two", "epochs", "epochs-authors"]
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_graphs_change_no_bit(tiny_config, model, stages, compiled):
    settings = (f"model={model}", *stages, f"trainer.compile={str(compiled).lower()}")
    plain = trained(tiny_config, *settings, "trainer.cuda_graphs=false", "variant=_plain")
    graphed = trained(tiny_config, *settings, "trainer.cuda_graphs=true", "variant=_graphed")
    assert plain[0] == graphed[0]
    for key, value in plain[1].items():
        assert torch.equal(value, graphed[1][key]), key
    for key, state in plain[2].items():
        for name, value in state.items():
            assert torch.equal(value, graphed[2][key][name]), (key, name)


@pytest.mark.parametrize(
    "model",
    [
        *("palimpsa_d", "palimpsa_m", "gated_deltanet", "transformer"),
        *("ablation/palimpsa_d_constant_beta", "palimpsa_d_scalar", "palimpsa_m_scalar"),
    ],
)
def test_compiled_blocks_train_as_eager_ones(tiny_config, model):
    losses = []
    for compiled in ("false", "true"):
        cfg = tiny_config(*SIZES, *TWO_STAGES, f"model={model}", f"trainer.compile={compiled}", f"variant=_{compiled}")
        run(cfg)
        losses.append(pd.read_csv(Path(cfg.run_dir) / "history.csv")["loss"].dropna().tolist())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
