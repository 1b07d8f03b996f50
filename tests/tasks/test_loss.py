"""The cross-entropy of any task, and the recall that MQAR makes of it."""

import pytest
import torch

from palimpsa.model.build import build_model
from palimpsa.tasks.build import build_task
from palimpsa.tasks.loss import cross_entropy, unit_gradient
from palimpsa.tasks.mqar_examples import MQARSpec, mqar_batch
from palimpsa.tasks.recall import RecallMeter

SPEC = MQARSpec(16, 4, 32)


def test_the_loss_is_the_cross_entropy_at_the_queries_only(tiny_config):
    cfg = tiny_config()
    model, task = build_model(cfg.model, 1), build_task(cfg.task, 1)
    batch = mqar_batch(MQARSpec(8, 2, 32), seed=1, split="train", stage=0, step=0, batch_size=4)
    labels = torch.full_like(batch.inputs, -100).scatter(1, batch.query_positions, batch.labels)
    expected = torch.nn.functional.cross_entropy(model(batch.inputs).flatten(0, 1), labels.flatten())
    found = task.loss(model, batch)
    assert found.num_targets == 8
    torch.testing.assert_close(found.mean, expected)
    parameters = list(model.parameters())
    gradients = (torch.autograd.grad(loss, parameters) for loss in (found.mean, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_loss_is_fp32_under_autocast_and_its_gradient_in_the_dtype_of_the_logits(device):
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).bfloat16().to(device).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 6], device=device)
    plain = cross_entropy(logits, labels)
    with torch.autocast(device, torch.bfloat16):
        found = cross_entropy(logits, labels)
    assert plain.mean.dtype == found.mean.dtype == torch.float32
    assert torch.equal(plain.mean, found.mean)
    gradients = [torch.autograd.grad(loss.mean, logits)[0] for loss in (plain, found)]
    assert gradients[0].dtype == torch.bfloat16
    assert torch.equal(*gradients)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_known_unit_gradient_is_a_unit_gradient_and_others_scale(device):
    logits = torch.randn(6, 7, device=device, requires_grad=True)
    labels = torch.arange(6, device=device)
    (plain,) = torch.autograd.grad(cross_entropy(logits, labels).mean, logits)
    (known,) = torch.autograd.grad(cross_entropy(logits, labels).mean, logits, unit_gradient(logits.device))
    (scaled,) = torch.autograd.grad(2 * cross_entropy(logits, labels).mean, logits)
    assert torch.equal(plain, known)
    assert torch.equal(scaled, 2 * plain)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_answer_whose_loss_is_no_number_is_not_right(device):
    inf = float("inf")
    logits = torch.tensor(
        [[float("nan"), 0.0, 0.0], [0.0, inf, 0.0], [-inf, -inf, -inf], [-inf, 0.0, 1.0]], device=device
    )
    assert cross_entropy(logits, torch.tensor([0, 1, 0, 2], device=device)).is_right.tolist() == [False] * 3 + [True]


def test_recall_counts_right_answers_by_age():
    spec = MQARSpec(8, 2, 32)

    class Oracle(torch.nn.Module):
        """Answers the first pair of each row rightly, the second never."""

        def forward(self, inputs, positions):
            logits = torch.zeros(*positions.shape, 32)
            logits[:, 0] = torch.nn.functional.one_hot(inputs[:, 1], 32).float()
            return logits

    recall = RecallMeter(Oracle(), spec, seed=1, split="test", stage=0, batch_size=4, device="cpu")(10)
    assert recall.accuracy == 0.5
    # The first pair's value stands at 1 and the second's at 3, the queries at 4 and 6: ages 3 or 5, and 1 or 3.
    batch = mqar_batch(spec, seed=1, split="test", stage=0, step=0, batch_size=10)
    for age_slice, accuracy in enumerate(recall.accuracy_by_age):
        inside = batch.ages() * 4 // 8 == age_slice
        right = inside[:, 0].sum().item()
        assert accuracy == (right / inside.sum().item() if inside.any() else None)


def test_a_meter_takes_a_smaller_last_batch(tiny_config):
    model = build_model(tiny_config().model, 1)
    at = {"seed": 1, "split": "validation", "stage": 0, "device": "cpu"}
    whole, parts = (RecallMeter(model, SPEC, batch_size=size, **at)(10) for size in (10, 4))
    assert whole.accuracy == parts.accuracy
    assert whole.accuracy_by_age == parts.accuracy_by_age
    assert whole.loss == pytest.approx(parts.loss)


@pytest.mark.gpu
def test_a_captured_evaluation_sees_new_weights(tiny_config):
    from palimpsa.training.cuda_graph import Replay

    model = build_model(tiny_config().model, 1).cuda()
    at = {"seed": 1, "split": "validation", "stage": 0, "batch_size": 4, "device": "cuda"}
    meter = RecallMeter(model, SPEC, capture=Replay, **at)
    for scale in (1.0, 0.5, 2.0):
        with torch.no_grad():
            model.embedding.weight.mul_(scale)
        with torch.autocast("cuda", torch.bfloat16):
            graphed = meter(18)
            plain = RecallMeter(model, SPEC, **at)(18)
        assert graphed == plain
