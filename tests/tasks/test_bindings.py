"""What the queries of a task ask for, as the memory inspector is told."""

import torch

from palimpsa.config.schema import typed
from palimpsa.tasks.build import build_task
from palimpsa.tasks.task import Task


def test_a_query_stands_at_its_pairs_key_and_is_answered_by_its_value(compose_config, tiny_overrides):
    config = typed(compose_config(*tiny_overrides))
    task = build_task(config.task, 3)
    found = task.bindings(task.stages[-1], "test", torch.arange(5))
    assert found is not None
    keys, values = (found.tokens.gather(1, found.stored[..., i]) for i in (0, 1))
    assert torch.equal(found.tokens.gather(1, found.queries), keys)
    assert torch.equal(found.labels, values)
    assert found.stored.shape == (5, task.stages[-1].spec.num_pairs, 2)
    assert (found.queries > found.stored[..., 1]).all()


def test_other_tasks_store_no_pairs():
    from palimpsa.tasks.commonsense import CommonsenseTask

    assert CommonsenseTask.bindings is Task.bindings
