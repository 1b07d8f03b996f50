"""Scores, query by query: against the recurrence written out, and of a model that knows all answers."""

import numpy as np
import pytest
import torch

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.calibration.queries import Signal, answer_queries, check_has_variance
from palimpsa.model.build import build_model
from palimpsa.tasks.build import build_task

NUM_EXAMPLES = 6


@pytest.fixture
def asked(tiny_config):
    """A model, its task and the last stage's answers: `asked("palimpsa_d", batch_size=4)`."""

    def ask(name: str, *, batch_size: int = 4, change=lambda model: None):
        config = tiny_config(f"model={name}")
        model, task = build_model(config.model, 3).eval(), build_task(config.task, 1)
        change(model)
        stage = task.stages[-1]
        found = answer_queries(model, task, stage, num_examples=NUM_EXAMPLES, batch_size=batch_size)
        batch = task.make_batch(stage, "test", torch.arange(NUM_EXAMPLES))
        return model, task, stage, batch, found

    return ask


@pytest.mark.parametrize("name", ["palimpsa_d", "palimpsa_m", "palimpsa_d_scalar", "palimpsa_m_scalar"])
def test_answers_and_scores_are_those_of_the_model_and_of_its_operator(name, asked):
    model, task, stage, batch, found = asked(name)
    with torch.no_grad():
        log_p = model(batch.inputs, batch.query_positions).double().log_softmax(-1)
    wrong = (log_p.argmax(-1) != batch.labels).flatten().numpy()
    np.testing.assert_array_equal(found.is_wrong, wrong)
    expected = task.evaluate(model, "test", stage, torch.device("cpu"))
    assert found.sequences.tolist() == np.repeat(np.arange(NUM_EXAMPLES), 4).tolist()
    assert set(expected) >= {"accuracy", "loss"}
    losses = -log_p.gather(-1, batch.labels[..., None]).flatten().numpy()
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert found.accuracy == pytest.approx(1 - wrong.mean())
    p = log_p.exp()
    np.testing.assert_allclose(found.scores[Signal("confidence")], 1 - p.amax(-1).flatten(), rtol=1e-4)
    np.testing.assert_allclose(found.scores[Signal("entropy")], -(p * log_p).sum(-1).flatten(), rtol=1e-4)
    np.testing.assert_array_equal(found.scores[Signal("age")], batch.ages().flatten())
    # Layer by layer, from the memory that the importances make, token by token.
    total, x = 0, model.embedding(batch.inputs)
    for layer, block in enumerate(model.blocks):
        variance, o = _by_hand(block.mixer, block.mixer_norm(x))
        at = batch.query_positions[..., None]
        mine = variance.sum(2, keepdim=True).gather(1, at)[..., 0].flatten().detach().numpy()
        np.testing.assert_allclose(found.scores[Signal("variance", str(layer))], mine, rtol=1e-4)
        length = o.square().sum(2, keepdim=True).gather(1, at)[..., 0].flatten().detach().numpy()
        np.testing.assert_allclose(found.scores[Signal("relative_variance", str(layer))], mine / length, rtol=1e-3)
        total = total + mine
        x = block(x)
    np.testing.assert_allclose(found.scores[Signal("variance", "sum")], total, rtol=1e-4)


def _by_hand(mixer, x):
    """variance and o, [B, T, H V] each, by Eq. 25 and 26 of arXiv 2602.09075."""
    q, k, v, beta, log_decay, *_ = mixer._operands(x, None, None)
    scale = q.shape[-1] ** -0.5 if mixer.scale is None else mixer.scale
    beta = beta.repeat_interleave(v.shape[-1] // beta.shape[-1], dim=-1)
    prior = mixer.importance_prior[:, None, None]
    importance, weighted, variances, outputs = prior.expand(*q.shape[:1], -1, q.shape[-1], v.shape[-1]), 0, [], []
    for t in range(x.shape[1]):
        alpha = log_decay[:, t].exp()[..., None, None]
        key = k[:, t, :, :, None]
        importance = alpha * importance + (1 - alpha) * prior + key.square() * beta[:, t, :, None]
        weighted = alpha * weighted + key * v[:, t, :, None]
        query = q[:, t, :, :, None]
        variances.append((scale**2 * query.square() / importance).sum(2).flatten(1))
        outputs.append((scale * query * weighted / importance).sum(2).flatten(1))
    return torch.stack(variances, 1), torch.stack(outputs, 1)


def test_a_memory_that_recalls_nothing_has_scores_still(asked):
    """Of values of zeros: AUROC takes finite scores alone."""

    def write_nothing(model):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "conv" in name:
                    parameter.zero_()

    *_, found = asked("palimpsa_d", change=write_nothing)
    assert all(np.isfinite(scores).all() for scores in found.scores.values())


def test_the_batch_size_changes_rounding_alone(asked):
    one, other = asked("palimpsa_m", batch_size=1)[-1], asked("palimpsa_m", batch_size=6)[-1]
    assert one.scores.keys() == other.scores.keys()
    for signal, scores in one.scores.items():
        np.testing.assert_allclose(scores, other.scores[signal], rtol=1e-4, err_msg=str(signal))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("transformer", "whose Attention has no variance, expected Palimpsa-D or Palimpsa-M"),
        ("gla", "has no variance"),
        ("palimpsa_d_nometa", "D w/o Meta, without importances"),
        ("mamba2", r"Mamba-2 \(M w/o Meta\), without importances"),
    ],
)
def test_a_model_without_variance_is_named(name, told, tiny_config):
    config = tiny_config(f"model={name}")
    with pytest.raises(ConfigError, match=told):
        check_has_variance(build_model(config.model, 1), "CHECKPOINT run", config.model.label)
