"""A step in parts: the same gradients, curves and resume as in one, and a look at each step before it is taken."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.config.errors import ConfigError
from palimpsa.tasks.build import build_task
from palimpsa.tasks.mqar import MQARTask
from palimpsa.training import module as training_module
from palimpsa.training.distributed import check_ranks
from palimpsa.training.run import run

TIMES = ["tokens_per_s"]


def curves(config) -> pd.DataFrame:
    run(config)
    return pd.read_csv(Path(config.run_dir) / "history.csv").drop(columns=TIMES)


def test_two_parts_of_a_step_train_as_one(tiny_config):
    whole = curves(tiny_config("seed=2", "variant=_whole"))
    parts = curves(tiny_config("seed=2", "variant=_parts", "trainer.accumulate=2"))
    assert whole["loss"].notna().sum() == 10
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-5, atol=0)


def test_a_killed_run_in_parts_goes_on_with_the_next_step(tiny_config, monkeypatch):
    undisturbed = curves(tiny_config("seed=2", "variant=_whole", "trainer.accumulate=2"))
    config = tiny_config("seed=2", "trainer.accumulate=2", "trainer.checkpoint_every=7")
    step = training_module.TrainingModule.training_step
    seen = []

    def dies(self, batch, batch_idx):
        seen.append(self.trainer.global_step)
        # In the second part of step 16: what the first one added is lost.
        if seen.count(16) == 2:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(training_module.TrainingModule, "training_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run(config)
    (Path(config.run_dir) / "result.json").unlink()
    pd.testing.assert_frame_equal(curves(config), undisturbed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 3}, r"trainer\.accumulate: got 3, expected a divisor of the \d+ examples that each of 1"),
        ({"accumulate": 2, "uses_graphs": True}, r"trainer\.accumulate: got 2 with trainer\.cuda_graphs, expected 1"),
        ({"spike_sigmas": 10.0, "uses_graphs": True}, r"trainer\.spike_sigmas: got 10\.0 with trainer\.cuda_graphs"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run(tiny_config, options, message):
    task = build_task(tiny_config().task, 1)
    with pytest.raises(ConfigError, match=message):
        check_ranks(task, **{"uses_graphs": False, **options})


def test_a_loss_that_is_no_number_stops_before_the_step(tiny_config, monkeypatch):
    """The weights are as they were, the last checkpoint stays, and the run says where."""
    config = tiny_config("trainer.spike_sigmas=10", "trainer.checkpoint_every=2", "trainer.accumulate=2")
    loss_of, weights = training_module.TrainingModule.training_step, []

    def spoilt(self, batch, batch_idx):
        loss = loss_of(self, batch, batch_idx)
        if self.trainer.global_step == 5:
            weights.append((self.model, [p.detach().clone() for p in self.model.parameters()]))
            self._step_loss = self._step_loss * math.nan
            loss = loss * math.nan
        return loss

    monkeypatch.setattr(training_module.TrainingModule, "training_step", spoilt)
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 5, first in .*: that of seed 1, stage 0, step 5$"
    ):
        run(config)
    model, before = weights[-1]
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    folder = Path(config.run_dir)
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], "at step 5" in result["error"]) == ("diverged", True)


def test_the_losses_of_the_last_steps_travel_in_the_checkpoint(tiny_config):
    config = tiny_config("trainer.spike_sigmas=1000", "trainer.checkpoint_every=4")
    run(config)
    saved = torch.load(Path(config.run_dir) / "checkpoints/last.ckpt", weights_only=True)
    losses = saved["callbacks"]["LossGuard"]["losses"]
    assert len(losses) == min(100, saved["global_step"]) > 8
    assert all(math.isfinite(loss) for loss in losses)


def test_a_task_may_have_its_curves_show_what_steps_cost(tiny_config, monkeypatch):
    plain = curves(tiny_config("seed=2", "variant=_plain"))
    monkeypatch.setattr(MQARTask, "reports_costs", True)
    rows = curves(tiny_config("seed=2", "trainer.accumulate=2"))
    costs = ["data_wait", "gradient_norm"]
    pd.testing.assert_frame_equal(rows.drop(columns=costs), plain, rtol=1e-5, atol=0)
    trained = rows.loc[rows["loss"].notna()]
    assert (trained["gradient_norm"] > 0).all()
    assert trained["data_wait"].between(0, 1, inclusive="neither").all()
