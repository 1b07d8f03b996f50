"""One step: its gradients are those of the loss, clipped, whoever computes them; and the optimiser's rates."""

import lightning as L
import pytest
import torch

from palimpsa.model.build import build_model
from palimpsa.runs.directory import RunDirectory
from palimpsa.tasks.build import build_task
from palimpsa.training.optimizer import learning_rate_factor
from palimpsa.training.run import TrainingRun


class FirstStep(L.Callback):
    """Keeps what the first step leaves: its loss, its gradients, and those of `compute_gradients` before it."""

    def on_train_start(self, trainer, pl_module):
        batch = pl_module.task.batch(pl_module.curriculum.stage, 0, pl_module.device)
        with trainer.precision_plugin.forward_context():
            self.computed_loss = pl_module.compute_gradients(batch)
        self.computed = [p.grad.clone() for p in pl_module.model.parameters()]
        pl_module.zero_grad()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.loss = outputs["loss"].detach().clone()
        self.gradients = [p.grad.clone() for p in pl_module.model.parameters()]
        trainer.should_stop = True


def first_step(cfg) -> FirstStep:
    seen = FirstStep()
    TrainingRun(cfg, build_task(cfg.task, cfg.seed), RunDirectory(cfg.run_dir)).fit([seen])
    return seen


def expected_gradients(cfg, precision=None):
    """The loss of the first step and its gradients, not clipped, by PyTorch's own functions."""
    model, task = build_model(cfg.model, cfg.seed), build_task(cfg.task, cfg.seed)
    batch = task.batch(task.stages[0], 0, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(batch.inputs, batch.query_positions)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


def test_gradients_are_clipped_and_those_of_the_loss(tiny_config):
    cfg = tiny_config("optimizer.gradient_clip=1e-3")
    seen = first_step(cfg)
    loss, gradients = expected_gradients(cfg)
    assert seen.loss == loss
    assert torch.stack([g.square().sum() for g in seen.gradients]).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)
    for one, other in zip(seen.gradients, gradients, strict=True):
        torch.testing.assert_close(one * (other.norm() / one.norm()), other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("trainer", ["trainer.precision=32-true", "trainer.precision=bf16-mixed"])
def test_what_a_graph_replays_is_what_lightning_does(tiny_config, trainer):
    """`compute_gradients`, the body that is captured on a GPU, leaves the bits of the step that Lightning runs."""
    seen = first_step(tiny_config(trainer, "optimizer.gradient_clip=0.1"))
    assert torch.equal(seen.loss, seen.computed_loss)
    for one, other in zip(seen.gradients, seen.computed, strict=True):
        assert torch.equal(one, other)


def test_the_backward_is_outside_of_autocast(tiny_config):
    """Inside, what the forward computed in fp32 would have its gradients in bf16: of Mamba-2 up to a fifth off."""
    cfg = tiny_config("model=mamba2", "trainer.precision=bf16-mixed", "optimizer.gradient_clip=1e9")
    seen = first_step(cfg)
    for one, other in zip(seen.gradients, expected_gradients(cfg, "bf16")[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0, 1.0]), ("cosine", [0.5, 1.0, 1.0, 0.5, 0.0])],
)
def test_learning_rate_schedules(schedule, expected):
    factors = [learning_rate_factor(step, schedule=schedule, warmup_steps=2, max_steps=6) for step in (0, 1, 2, 4, 6)]
    assert factors == pytest.approx(expected)


def test_a_cosine_ends_at_the_share_that_it_is_given():
    options = {"schedule": "cosine", "warmup_steps": 2, "max_steps": 6, "final_share": 0.1}
    assert [learning_rate_factor(step, **options) for step in (1, 4, 6, 9)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
