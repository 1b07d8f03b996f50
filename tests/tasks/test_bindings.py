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


def test_with_interference_it_is_the_last_write_of_the_key_that_a_query_asks_for(compose_config):
    stages = "task.stages=[{seq_len:64,num_pairs:12,max_steps:1}]"
    config = typed(compose_config("task=mqar_interference", "task.vocab_size=128", "task.tokens_per_step=64", stages))
    task = build_task(config.task, 3)
    found = task.bindings(task.stages[0], "test", torch.arange(20))
    assert found is not None
    num_writes = 12 + task.stages[0].spec.num_overwrites
    for tokens, stored, queries, labels in zip(*(part.tolist() for part in found), strict=True):
        written = [tokens[2 * place] for place in range(num_writes)]
        for (key, value), query, label in zip(stored, queries, labels, strict=True):
            last = max(place for place in range(num_writes) if written[place] == tokens[query])
            assert (key, value) == (2 * last, 2 * last + 1)
            assert tokens[value] == label
    # Several queries may ask for one pair, and some pairs are written twice.
    assert num_writes > 12


def test_other_tasks_store_no_pairs():
    from palimpsa.tasks.commonsense import CommonsenseTask

    assert CommonsenseTask.bindings is Task.bindings
