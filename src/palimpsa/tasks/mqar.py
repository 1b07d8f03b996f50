"""Associative recall as a task: MQAR's examples, the loss at its queries, and recall as what counts."""

# B batch, n pairs

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from palimpsa.config.schema import MQARConfig
from palimpsa.tasks.loss import cross_entropy
from palimpsa.tasks.mqar_examples import AnyBatch, InterferenceSpec, mqar_examples
from palimpsa.tasks.recall import RecallMeter
from palimpsa.tasks.stages import MQARStage, stages_from_config
from palimpsa.tasks.task import Bindings, Loss, Metrics, Task


class MQARTask(Task[MQARStage, AnyBatch]):
    """MQAR by either protocol.

    Metrics: accuracy, the share of queries answered rightly; loss, nats a query; accuracy/age0 to accuracy/age3, the
    share for pairs by the quarter of the context that lies between pair and query, where there are such. With
    interference instead of these accuracy/often, /often_overwritten, /rare, /rare_overwritten.

    Args:
        config: the `task` group.
        seed: of the run's data, >= 0.

    Raises:
        ConfigError: see `stages_from_config`.
    """

    metric = "accuracy"
    capturable = True
    asks_queries = True

    def __init__(self, config: MQARConfig, seed: int) -> None:
        self.stages = stages_from_config(config)
        self.steps_per_epoch = self.stages[0].steps_per_epoch
        self.seed = seed
        self.stop_accuracy = config.stop_accuracy
        self.num_examples = {"validation": config.num_validation, "test": config.num_test}
        # Of the model, stage and split that were last evaluated: it holds what was captured.
        self._meter: RecallMeter | None = None

    def train_examples(self, stage: MQARStage, step: int, device: torch.device) -> Tensor:
        return stage.train_examples(self.seed, step, device)

    def step_sizes(self, stage: MQARStage) -> set[int]:
        last = (stage.num_train_examples or 0) % stage.batch_size
        return {stage.batch_size, *([last] if last else [])}

    def make_batch(self, stage: MQARStage, split: str, examples: Tensor) -> AnyBatch:
        return mqar_examples(stage.spec, seed=self.seed, split=split, stage=stage.index, examples=examples)

    def loss(self, model: nn.Module, batch: AnyBatch) -> Loss:
        logits = model(batch.inputs, batch.query_positions)
        mean = cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).mean
        return Loss(mean, batch.labels.numel())

    def evaluate(self, model: nn.Module, split: str, stage: MQARStage, device: torch.device) -> Metrics:
        meter = self._meter
        if meter is None or (meter.model, meter.stage, meter.split) != (model, stage.index, split):
            # The old one's memory is free before the new one takes its own.
            self._meter = None
            meter = self._meter = RecallMeter(
                model,
                stage.spec,
                seed=self.seed,
                split=split,
                stage=stage.index,
                batch_size=stage.batch_size,
                device=device,
                capture=self.capture,
            )
        recall = meter(self.num_examples[split])
        by_kind = zip(stage.spec.slice_names, recall.accuracy_by_age, strict=True)
        shares = {f"accuracy/{name}": share for name, share in by_kind if share is not None}
        return {"accuracy": recall.accuracy, "loss": recall.loss, **shares}

    def is_solved(self, validation: Metrics) -> bool:
        return validation["accuracy"] >= self.stop_accuracy

    def stage_result(self, stage: MQARStage, validation: Metrics, test: Metrics | None) -> dict[str, Any]:
        by_kind = test and {name: test.get(f"accuracy/{name}") for name in stage.spec.slice_names}
        has_interference = isinstance(stage.spec, InterferenceSpec)
        return {
            "seq_len": stage.spec.seq_len,
            "num_pairs": stage.spec.num_pairs,
            "validation_accuracy": validation["accuracy"],
            "test_accuracy": test and test["accuracy"],
            "test_accuracy_by_age": None if has_interference or by_kind is None else list(by_kind.values()),
            "test_loss": test and test["loss"],
            **({"test_accuracy_by_kind": by_kind} if has_interference else {}),
        }

    def headline(self, result: dict[str, Any]) -> str:
        accuracy = result["test_accuracy"]
        return "" if accuracy is None else f"L {result['seq_len']}: {accuracy:.1%}"

    def contexts(self, stage: MQARStage, num_examples: int, device: torch.device) -> Tensor:
        return self.make_batch(stage, "validation", torch.arange(num_examples, device=device)).inputs

    def bindings(self, stage: MQARStage, split: str, examples: Tensor) -> Bindings:
        batch = self.make_batch(stage, split, examples)
        spec = stage.spec
        # Writes come first, each a key and then its value; only with interference is a key written twice.
        num_writes = spec.num_pairs + (spec.num_overwrites if isinstance(spec, InterferenceSpec) else 0)
        written = batch.inputs[:, None, 0 : 2 * num_writes : 2]
        asked = batch.inputs.gather(1, batch.query_positions)[..., None]
        places = torch.arange(num_writes, device=examples.device)
        # The last one of the key: its value is the one that counts.
        keys = 2 * (written == asked).mul(places).amax(dim=-1)
        return Bindings(batch.inputs, torch.stack([keys, keys + 1], dim=-1), batch.query_positions, batch.labels)

    def release(self) -> None:
        self._meter = None
