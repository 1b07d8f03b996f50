"""A step's gradients: compiled, captured, and as they stand, are the same."""

import pytest
import torch

from palimpsa.model.build import build_model
from palimpsa.tasks.mqar import MQARSpec, mqar_batch
from palimpsa.tasks.recall import RecallMeter
from palimpsa.tasks.stages import Stage
from palimpsa.training.step import GradientStep, compile_blocks

SPEC = MQARSpec(16, 4, 32)
FRESH = Stage(index=0, spec=SPEC, batch_size=8, max_steps=9)
# Two batches of 8 and one of 4 an epoch.
FIXED = Stage(index=0, spec=SPEC, batch_size=8, max_steps=9, num_train_examples=20)


def train(cfg, stages, device, *, use_graphs, compiled=False, num_steps=7):
    """The losses of some steps of plain gradient descent in each stage, and the weights afterwards."""
    model = build_model(cfg.model, 1).to(device)
    if compiled:
        compile_blocks(model)
    parameters = list(model.parameters())
    step = GradientStep(model, parameters, seed=1, gradient_clip=1.0, use_graphs=use_graphs)
    losses = []
    for stage in stages:
        for i in range(num_steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses.append(step(stage, i, device).clone())
            with torch.no_grad():
                for parameter in parameters:
                    parameter.sub_(0.5 * parameter.grad)
    return torch.stack(losses).cpu(), torch.cat([p.detach().flatten() for p in parameters]).cpu()


def loss_at_queries(model, batch):
    """For autograd to follow."""
    logits = model(batch.inputs, batch.query_positions)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())


def test_gradients_are_clipped_and_those_of_the_loss(tiny_config):
    model = build_model(tiny_config().model, 1)
    parameters = list(model.parameters())
    loss = GradientStep(model, parameters, seed=3, gradient_clip=1e-3, use_graphs=False)(FRESH, 2, torch.device("cpu"))
    found = [p.grad.clone() for p in parameters]
    assert torch.stack([g.square().sum() for g in found]).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)
    batch = mqar_batch(SPEC, seed=3, split="train", stage=0, step=2, batch_size=8)
    expected = loss_at_queries(model, batch)
    assert loss.item() == expected.item()
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one * (other.norm() / one.norm()), other, rtol=1e-4, atol=1e-7)


def test_the_backward_is_outside_of_autocast(tiny_config):
    """Inside, what the forward computed in fp32 would have its gradients in bf16: of Mamba-2 up to a fifth off."""
    model = build_model(tiny_config("model=mamba2").model, 1)
    parameters = list(model.parameters())
    step = GradientStep(model, parameters, seed=3, gradient_clip=1e9, use_graphs=False)
    with torch.autocast("cpu", torch.bfloat16):
        step(FRESH, 0, torch.device("cpu"))
        expected = loss_at_queries(model, mqar_batch(SPEC, seed=3, split="train", stage=0, step=0, batch_size=8))
    for parameter, gradient in zip(parameters, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_meter_takes_a_smaller_last_batch(tiny_config):
    model = build_model(tiny_config().model, 1)
    at = {"seed": 1, "split": "validation", "stage": 0, "device": "cpu"}
    whole, parts = (RecallMeter(model, SPEC, batch_size=size, **at)(10) for size in (10, 4))
    assert whole.accuracy == parts.accuracy
    assert whole.accuracy_by_age == parts.accuracy_by_age
    assert whole.loss == pytest.approx(parts.loss)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """What torch.compile keeps on disk: torch 2.11 times some reductions, and a test beside this may choose others."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


@pytest.mark.gpu
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("model", ["palimpsa_d", "palimpsa_m", "gated_deltanet", "transformer"])
@pytest.mark.parametrize("stages", [[FRESH, Stage(1, MQARSpec(32, 8, 64), 4, 9)], [FIXED]], ids=["two", "epochs"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_graphs_change_no_bit(tiny_config, model, stages, compiled):
    cfg = tiny_config(f"model={model}", "task.vocab_size=64", "scale.head_k_dim=16", "scale.head_v_dim=16")
    device = torch.device("cuda")
    plain = train(cfg, stages, device, use_graphs=False, compiled=compiled)
    graphed = train(cfg, stages, device, use_graphs=True, compiled=compiled)
    for one, other in zip(plain, graphed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "model",
    [
        *("palimpsa_d", "palimpsa_m", "gated_deltanet", "transformer"),
        *("ablation/palimpsa_d_constant_beta", "ablation/palimpsa_d_scalar_beta"),
    ],
)
def test_compiled_blocks_train_as_eager_ones(tiny_config, model):
    cfg = tiny_config(f"model={model}", "task.vocab_size=64", "scale.head_k_dim=16", "scale.head_v_dim=16")
    losses = [train(cfg, [FRESH], torch.device("cuda"), use_graphs=True, compiled=c)[0] for c in (False, True)]
    torch.testing.assert_close(*losses, rtol=2e-2, atol=0)


@pytest.mark.gpu
def test_a_meters_graph_sees_new_weights(tiny_config):
    model = build_model(tiny_config().model, 1).cuda()
    meter = RecallMeter(model, SPEC, seed=1, split="validation", stage=0, batch_size=4, device="cuda", use_graph=True)
    for scale in (1.0, 0.5, 2.0):
        with torch.no_grad():
            model.embedding.weight.mul_(scale)
        with torch.autocast("cuda", torch.bfloat16):
            graphed = meter(18)
            plain = RecallMeter(model, SPEC, seed=1, split="validation", stage=0, batch_size=4, device="cuda")(18)
        assert graphed == plain
