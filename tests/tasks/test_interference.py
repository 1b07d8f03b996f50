"""Associative recall with interference: what every example fulfils, the laws of its queries, and what guesses get."""

import math

import pytest
import torch

from palimpsa.config.checks import check_config
from palimpsa.config.compose import compose_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import typed
from palimpsa.model.build import build_model
from palimpsa.tasks.build import build_task
from palimpsa.tasks.mqar_examples import InterferenceSpec, MQARSpec, mqar_batch, mqar_examples

# L, n, V, power, m, distractors, z
SIZES = [
    (16, 2, 32, 0.01, 1, 0, 1.0),
    (64, 8, 96, 0.01, 4, 2, 1.0),
    (64, 10, 96, 1.0, 10, 9, 0.0),
    (512, 64, 8192, 0.01, 32, 16, 1.5),
]


def batch_of(spec: InterferenceSpec, **changes):
    arguments = {"seed": 1, "split": "train", "stage": 0, "step": 0, "batch_size": 32, **changes}
    return mqar_batch(spec, **arguments)


def writes_of(spec: InterferenceSpec, row: torch.Tensor) -> list[tuple[int, int]]:
    """The keys and values of an example's inputs [L], in the order in which they are written."""
    end = 2 * (spec.num_pairs + spec.num_overwrites)
    return list(zip(row[0:end:2].tolist(), row[1:end:2].tolist(), strict=True))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_example_is_writes_then_queries_whose_label_is_the_last_written_value(sizes):
    spec = InterferenceSpec(*sizes)
    batch = batch_of(spec)
    for row in range(len(batch.inputs)):
        inputs = batch.inputs[row]
        writes = writes_of(spec, inputs)
        counts = {key: [one for one, _ in writes].count(key) for key, _ in writes}
        assert len(counts) == spec.num_pairs
        assert sorted(counts.values()) == [1] * (spec.num_pairs - spec.num_overwrites) + [2] * spec.num_overwrites
        assert len({value for _, value in writes}) == len(writes)
        assert all(1 <= key < spec.vocab_size // 2 <= value < spec.vocab_size for key, value in writes)
        # A dictionary keeps what was written last.
        last = dict(writes)
        ranked = sorted(key for key in last if key < spec.first_distractor)
        assert len(last) - len(ranked) == spec.num_distractors
        rest = torch.zeros_like(inputs)
        rest[: 2 * len(writes)] = inputs[: 2 * len(writes)]
        for position, label, kind in zip(batch.query_positions[row], batch.labels[row], batch.kinds[row], strict=True):
            key = int(inputs[position])
            assert (position - 2 * len(writes)) % 2 == 0
            assert rest[position] == 0, "two queries in one slot"
            rest[position] = key
            assert label == last[key]
            rank, is_rare = ranked.index(key), kind >= 2
            assert is_rare == (rank >= math.ceil(len(ranked) / 4))
            assert kind % 2 == counts[key] - 1
        assert torch.equal(rest, inputs)


@pytest.mark.parametrize("zipf", [0.0, 1.0, 2.0])
def test_queries_follow_zipfs_law_of_ranks(zipf):
    spec = InterferenceSpec(64, 8, 96, 0.01, 4, 2, zipf)
    batch, num_ranks = batch_of(spec, batch_size=5_000), spec.num_queried
    keys = batch.inputs[:, : 2 * 12 : 2]
    ranked = keys.masked_fill(keys >= spec.first_distractor, 10_000).sort(dim=1).values
    # Of a key that is written twice the second copy is no rank of its own.
    is_new = torch.ones_like(ranked, dtype=torch.bool)
    is_new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    ranks = is_new.cumsum(1) - 1
    asked = batch.inputs.gather(1, batch.query_positions)
    rank = torch.stack(
        [ranks.gather(1, (ranked == asked[:, i : i + 1]).long().argmax(1, keepdim=True))[:, 0] for i in range(8)]
    )
    counts = torch.bincount(rank.flatten(), minlength=num_ranks).double()
    law = torch.arange(1, num_ranks + 1).double() ** -zipf
    expected = counts.sum() * law / law.sum()
    # 5 degrees of freedom: 24 is the 0.9998 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 24


def test_what_is_written_first_and_which_keys_are_overwritten_is_uniform():
    spec = InterferenceSpec(64, 8, 96, 0.01, 4, 2)
    batch = batch_of(spec, batch_size=5_000)
    keys = batch.inputs[:, : 2 * 12 : 2]
    # Whether the write at each place is of a key that stands there twice: two thirds of all.
    twice = (keys[:, :, None] == keys[:, None, :]).sum(2) == 2
    share = twice.double().mean(0)
    assert (share - 2 / 3).abs().max() < 4 * math.sqrt(2 / 9 / 5_000)
    # A quarter of the pairs is never queried, and those are overwritten as often as others.
    is_distractor = keys >= spec.first_distractor
    assert is_distractor[twice].double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_guesses_get_what_they_should():
    """The last written value is the label; the first one is, where a key is written once: half of the queries."""
    spec = InterferenceSpec(64, 8, 96, 0.01, 4, 2)
    batch = batch_of(spec, batch_size=2_000)
    right = {"last": 0, "first": 0, "any value of the key": 0.0}
    for inputs, positions, labels in zip(batch.inputs, batch.query_positions, batch.labels, strict=True):
        writes = writes_of(spec, inputs)
        for key, label in zip(inputs[positions].tolist(), labels.tolist(), strict=True):
            values = [value for one, value in writes if one == key]
            right["last"] += values[-1] == label
            right["first"] += values[0] == label
            right["any value of the key"] += values.count(label) / len(values)
    shares = {name: number / batch.labels.numel() for name, number in right.items()}
    assert shares["last"] == 1
    assert shares["first"] == pytest.approx(0.5, abs=0.02)
    assert shares["any value of the key"] == pytest.approx(0.75, abs=0.01)
    assert shares["first"] == (batch.kinds % 2 == 0).double().mean()


def test_a_batch_is_a_pure_function_of_its_address():
    spec = InterferenceSpec(64, 8, 96, 0.01, 4, 2)
    first = batch_of(spec)
    torch.manual_seed(999)
    assert all(torch.equal(a, b) for a, b in zip(first, batch_of(spec), strict=True))
    for change in ({"seed": 2}, {"split": "test"}, {"split": "validation"}, {"stage": 1}, {"step": 1}):
        assert not torch.equal(first.inputs, batch_of(spec, **change).inputs), change
    second = batch_of(spec, step=1, batch_size=4)
    rows = mqar_examples(spec, seed=1, split="train", stage=0, examples=torch.tensor([6, 4]))
    assert all(torch.equal(own, other[[2, 0]]) for own, other in zip(rows, second, strict=True))


def test_the_generator_is_pinned():
    """Published runs name their data by seed: the stream may never change."""
    batch = batch_of(InterferenceSpec(16, 2, 32, 0.01, 1, 1), batch_size=1)
    assert [x.tolist() for x in batch] == PINNED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((64, 8, 96, 0.01, 9, 2), "num_overwrites: got 9, expected 0 <= num_overwrites <= 8 pairs"),
        ((64, 8, 96, 0.01, -1, 2), "num_overwrites: got -1"),
        ((64, 8, 96, 0.01, 4, 8), "num_distractors: got 8, expected 0 <= num_distractors < 8 pairs"),
        ((64, 8, 96, 0.01, 4, 2, -1.0), "zipf: got -1.0"),
        ((64, 8, 96, 0.01, 4, 2, math.inf), "zipf: got inf"),
        ((64, 14, 96, 0.01, 7, 2), "num_pairs: got 14, of which 7 are written twice"),
        ((64, 12, 65, 0.01, 6, 9), "vocab_size: got 65, expected enough for 3 keys that are queried among 23, 9 that"),
    ],
)
def test_impossible_specs_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        InterferenceSpec(*arguments)


def config_of(*overrides: str):
    task = [] if overrides and overrides[0].startswith("task=") else ["task=mqar_interference"]
    return typed(compose_config([*task, *overrides]))


def test_a_stage_has_its_shares_of_the_pairs():
    for scale in ("laptop", "h200", "paper"):
        for stage in build_task(config_of(f"scale={scale}").task, 1).stages:
            spec = stage.spec
            assert isinstance(spec, InterferenceSpec)
            assert (spec.num_overwrites, spec.num_distractors) == (spec.num_pairs // 2, (spec.num_pairs + 2) // 4)
    plain = build_task(typed(compose_config(["task=mqar_curriculum"])).task, 1).stages[0].spec
    assert type(plain) is MQARSpec


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("task.zipf=null", r"task\.overwrite_share: got 0\.5 with task\.zipf=null, expected 0"),
        ("task.overwrite_share=1.5", r"task\.overwrite_share: got 1\.5, expected at most 1"),
        ("task.distractor_share=1", r"task\.distractor_share: got 1\.0, expected >= 0 and < 1"),
        (
            "task.distractor_share=0.99",
            r"task\.distractor_share: got 0\.99, which is 2 of task\.stages\[0\]\.num_pairs = 2, expected a share that",
        ),
        (
            "task=mqar_scratch task.zipf=1 task.overwrite_share=0.5",
            r"task\.overwrite_share: got 0\.5 with task\.stages=null, .* expected 0, or stages of fewer pairs",
        ),
        ("task.zipf=-1", r"task\.zipf: got -1\.0, expected >= 0"),
        (
            "task.stages=[{seq_len:16,num_pairs:4,max_steps:1}]",
            r"task\.stages\[0\]\.num_pairs: got 4, of which 2 are written twice",
        ),
    ],
)
def test_what_makes_no_stage_is_refused(overrides, words):
    def check(config):
        check_config(config)
        build_task(config.task, 1)

    with pytest.raises(ConfigError, match=words):
        check(config_of(*overrides.split()))


def test_recall_is_measured_of_every_kind():
    config = config_of("task.num_validation=64", "task.num_test=64")
    task = build_task(config.task, 1)
    stage, model = task.stages[-1], build_model(config.model, 1)
    found = task.evaluate(model, "test", stage, torch.device("cpu"))
    kinds = ("often", "often_overwritten", "rare", "rare_overwritten")
    assert set(found) == {"accuracy", "loss", *(f"accuracy/{kind}" for kind in kinds)}
    batch = task.make_batch(stage, "test", torch.arange(64))
    answers = model(batch.inputs, batch.query_positions).argmax(-1)
    for i, kind in enumerate(kinds):
        assert found[f"accuracy/{kind}"] == (answers == batch.labels)[batch.kinds == i].double().mean()
    result = task.stage_result(stage, found, found)
    assert result["test_accuracy_by_kind"] == {kind: found[f"accuracy/{kind}"] for kind in kinds}
    assert result["test_accuracy_by_age"] is None


PINNED = [[[4, 22, 4, 31, 13, 30, 4, 0, 4, 0, 0, 0, 0, 0, 0, 0]], [[8, 6]], [[31, 31]], [[1, 1]]]
