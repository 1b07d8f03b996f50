"""trainer.checkpoint_blocks: the same run in less memory, whoever computes its blocks."""

from pathlib import Path

import pandas as pd
import pytest

from palimpsa.config.checks import check_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import typed
from palimpsa.model import language_model
from palimpsa.training import run as run_module

# Two batches of 4 and one of 2 an epoch.
EPOCHS = (
    *("task=mqar_scratch", "task.stages=null", "task.seq_len=16"),
    *("task.num_train_examples=10", "task.num_epochs=2"),
)


@pytest.fixture
def num_checkpointed(monkeypatch):
    """A list that grows by one at every block whose activations are not kept."""
    calls, checkpoint = [], language_model.checkpoint
    monkeypatch.setattr(
        language_model, "checkpoint", lambda *args, **options: calls.append(1) or checkpoint(*args, **options)
    )
    return calls


def run_and_curves(cfg):
    result = run_module.run(cfg)
    return result, pd.read_csv(Path(cfg.run_dir) / "history.csv").drop(columns="tokens_per_s").to_csv()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_is_the_same_run_to_the_bit(tiny_config, tmp_path, num_checkpointed, precision):
    found = []
    for checkpointed in ("false", "true"):
        overrides = (f"trainer.checkpoint_blocks={checkpointed}", f"trainer.precision={precision}")
        found.append(run_and_curves(tiny_config(*overrides, f"results_dir={tmp_path / checkpointed}")))
        # Two layers in each of 19 steps.
        assert len(num_checkpointed) == (2 * 19 if checkpointed == "true" else 0)
    (plain, curves), (other, other_curves) = found
    assert curves == other_curves
    assert plain["stages"] == other["stages"]
    assert plain["config_hash"] == other["config_hash"]


def test_compiled_code_takes_the_batches_again_that_it_took_before(
    tiny_config, tmp_path, num_checkpointed, monkeypatch
):
    """Of an epoch's last, smaller batch neither the forward pass nor what the backward pass repeats is compiled."""

    def compile_blocks(model):
        for block in model.blocks:
            block.compile(backend="aot_eager", dynamic=False)

    monkeypatch.setattr(run_module, "compile_blocks", compile_blocks)
    curves = []
    for checkpointed in ("false", "true"):
        overrides = (*EPOCHS, "trainer.compile=true", f"trainer.checkpoint_blocks={checkpointed}")
        curves.append(run_and_curves(tiny_config(*overrides, f"results_dir={tmp_path / checkpointed}"))[1])
    assert curves[0] == curves[1]
    assert len(num_checkpointed) == 2 * 6


def test_with_graphs_it_is_refused(compose_config):
    cfg = typed(compose_config("trainer=gpu", "trainer.checkpoint_blocks=true"))
    with pytest.raises(
        ConfigError, match=r"^trainer\.checkpoint_blocks: got true, expected false with trainer\.cuda_g"
    ):
        check_config(cfg)
    cfg.trainer.cuda_graphs = False
    check_config(cfg)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "true"], ids=["eager", "compiled"])
def test_on_a_gpu_it_is_the_same_run_to_the_bit(tiny_config, tmp_path, monkeypatch, compiled):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    on_gpu = ("trainer=gpu", "trainer.cuda_graphs=false", f"trainer.compile={compiled}", "task.vocab_size=64")
    sizes = ("scale.head_k_dim=16", "scale.head_v_dim=16")
    curves = []
    for checkpointed in ("false", "true"):
        overrides = (*on_gpu, *sizes, f"trainer.checkpoint_blocks={checkpointed}")
        curves.append(run_and_curves(tiny_config(*overrides, f"results_dir={tmp_path / checkpointed}"))[1])
    assert curves[0] == curves[1]
