"""A task of one's own behind the seam: the loop trains, ends and records it without knowing it."""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.runs.rows import result_rows
from palimpsa.tasks import build
from palimpsa.tasks.loss import cross_entropy
from palimpsa.tasks.task import Loss, Stage, Task
from palimpsa.training.run import run


class Tokens(NamedTuple):
    tokens: Tensor


class CountingTask(Task[Stage, Tokens]):
    """Next tokens of sequences that count up: a loss and no accuracy, other batches, and no CUDA graph."""

    metric = "loss"

    def __init__(self, config, seed):
        self.stages = [Stage(0, max_steps=30, batch_size=4, context=12, is_tested=True)]
        self.seed = seed

    def train_examples(self, stage, step, device):
        return torch.arange(step * 4, step * 4 + 4, device=device)

    def make_batch(self, stage, split, examples):
        first = examples * 7 + self.seed
        return Tokens((first[:, None] + torch.arange(stage.context, device=examples.device)) % 16)

    def loss(self, model, batch):
        logits, labels = model(batch.tokens[:, :-1]), batch.tokens[:, 1:]
        return Loss(cross_entropy(logits.flatten(0, 1), labels.flatten()).mean, labels.numel())

    @torch.no_grad()
    def evaluate(self, model, split, stage, device):
        examples = torch.arange(8, device=device) + 100 * (split == "test")
        return {"loss": self.loss(model, self.make_batch(stage, split, examples)).mean.item()}

    def is_solved(self, validation):
        return validation["loss"] < 0.5

    def stage_result(self, stage, validation, test):
        return {"validation_loss": validation["loss"], "test_loss": test and test["loss"]}

    def headline(self, result):
        return f"loss {result['test_loss']:.2f}"

    def contexts(self, stage, num_examples, device):
        return self.make_batch(stage, "validation", torch.arange(num_examples, device=device)).tokens


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setitem(build.TASKS, "mqar", CountingTask)


def test_a_task_of_ones_own_is_trained_and_recorded(counting, tiny_config, capsys):
    cfg = tiny_config("optimizer.lr=3e-2")
    result = run(cfg)
    (stage,) = result["stages"]
    assert (result["status"], stage["ended_by"]) == ("finished", "loss")
    assert stage["test_loss"] < 0.7
    assert f": finished, loss {stage['test_loss']:.2f}" in capsys.readouterr().err
    history = pd.read_csv(Path(cfg.run_dir) / "history.csv")
    assert history["test_loss/L12"].dropna().tolist() == [pytest.approx(stage["test_loss"])]
    losses = history["loss"].dropna().tolist()
    assert losses[-1] < losses[0]
    # What sweeps and collections read of it.
    path = Path(cfg.run_dir) / "result.json"
    (row,) = result_rows(path, json.loads(path.read_text()))
    assert (row["test_loss"], row["seq_len"]) == (stage["test_loss"], None)


def test_a_task_that_cannot_be_captured_is_not(counting, tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"trainer\.cuda_graphs: got true, expected false with a task"):
        run(tiny_config("trainer=gpu"))
