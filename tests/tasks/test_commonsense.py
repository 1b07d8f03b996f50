"""Pretraining's batches: the step alone says them, however many processes, kills and threads there are."""

import dataclasses
import hashlib
import itertools
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import CommonsenseConfig, SweepAxes, typed
from palimpsa.model.build import build_model
from palimpsa.tasks.build import build_task
from palimpsa.tasks.commonsense import CommonsenseTask
from palimpsa.tasks.data_digests import split_folder
from palimpsa.tasks.loss import row_losses
from palimpsa.tasks.perplexity import Perplexity
from palimpsa.tasks.token_batches import TokenBatch, padded_boundaries
from palimpsa.text.manifest import read_manifest
from palimpsa.text.shards import ShardWriter
from palimpsa.text.tokenizers import load_tokenizer

CPU = torch.device("cpu")
VOCAB = 32


def config(data, **changes) -> CommonsenseConfig:
    values = {
        "kind": "commonsense",
        "name": "commonsense",
        "directory": "commonsense",
        "vocab_size": VOCAB,
        "tokens_per_step": 128,
        "warmup_steps": 2,
        "validation_every": 5,
        "schedule": "cosine",
        "sweep": SweepAxes("palimpsa_d", "1e-2", "1", "1"),
        "data": str(data),
        "verify": "hashes",
        "context": 16,
        "documents": "reset",
        "num_steps": 20,
        "validation_tokens": 400,
    }
    return CommonsenseConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory, write_text):
    return write_text(tmp_path_factory.mktemp("text"))


def digest(batches) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for x in batch:
            found.update(f"{tuple(x.shape)}".encode() + x.numpy().tobytes())
    return found.hexdigest()


def rows_of(batch: TokenBatch, row: int) -> list[list[int]]:
    return batch.tokens.view(-1, row).tolist()


class Table(torch.nn.Module):
    """Logits by the token, and by how many tokens of its sequence there have been."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator, dtype=dtype))
        self.register_buffer("output_weight", torch.eye(VOCAB, dtype=dtype))

    def hidden(self, tokens, cu_seqlens):
        places = torch.arange(tokens.shape[1])
        starts = cu_seqlens[torch.searchsorted(cu_seqlens, places, right=True) - 1]
        return self.weight[tokens] * (1 + 0.1 * (places - starts)[None, :, None])

    def forward(self, tokens, positions, cu_seqlens):
        return self.hidden(tokens, cu_seqlens)[0, positions[0]][None]


WAYS = [("reset", 1), ("run_on", 1), ("reset", 2), ("reset_every_context", 4)]
each_way = pytest.mark.parametrize(("documents", "contexts_per_row"), WAYS)


@each_way
def test_an_epoch_is_every_row_of_the_stream_once_with_its_next_tokens(text, documents, contexts_per_row):
    task = CommonsenseTask(config(text, documents=documents, contexts_per_row=contexts_per_row), 1)
    (stage,), shards = task.stages, task.shards["train"]
    row, stream = 16 * contexts_per_row, shards.tokens(0, shards.num_tokens)
    assert (stage.row_tokens, stage.num_rows, stage.tokens_per_step) == (row, len(stream) // row, 128)
    expected = stream[: stage.num_rows * row].reshape(-1, row)
    num_steps = math.ceil(2 * stage.num_rows / stage.batch_size)
    batches = [task.batch(stage, step, CPU) for step in range(num_steps)]
    found = [tuple(one) for batch in batches for one in rows_of(batch, row)]
    epochs = [found[: stage.num_rows], found[stage.num_rows : 2 * stage.num_rows]]
    for epoch in epochs:
        assert sorted(epoch) == sorted(map(tuple, expected.tolist()))
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(map(tuple, expected.tolist()))
    # Each label is what follows in the stream.
    ends = set(shards.document_ends.tolist())
    for step in range(3):
        examples, batch = task.train_examples(stage, step, CPU), batches[step]
        places = [int(examples[p // row]) * row + p % row for p in batch.positions[0].tolist()]
        assert batch.labels.tolist() == [int(stream[place + 1]) for place in places]
        if documents != "run_on":
            assert not ends & {place + 1 for place in places}


def test_a_step_says_where_its_text_is(text):
    """Of a step over the end of an epoch too: every row's first token, and the document that this token is in."""
    task = CommonsenseTask(config(text), 3)
    (stage,), shards = task.stages, task.shards["train"]
    crossing = stage.num_rows // stage.batch_size
    for step in (0, crossing):
        words = task.describe_batch(stage, step)
        assert words.startswith(f"rows of 16 tokens of {shards.directory} that begin in epoch 0 at ")
        assert ("; in epoch 1 at " in words) == (step == crossing)
        rows = rows_of(task.batch(stage, step, CPU), 16)
        found = [(int(start), int(document)) for start, document in re.findall(r"(\d+) \(document (\d+)\)", words)]
        assert [shards.tokens(start, start + 16).tolist() for start, _ in found] == rows
        for start, document in found:
            begins = shards.document_ends[document - 1] if document else 0
            assert begins <= start < shards.document_ends[document]


def test_another_seed_is_another_order(text):
    tasks = [CommonsenseTask(config(text), seed) for seed in (1, 1, 2)]
    first, again, other = (task.batch(task.stages[0], 0, CPU) for task in tasks)
    assert digest([first]) == digest([again]) != digest([other])


# Property 1: saved on 2 ranks, loaded on 1 and 4, the next global tokens are equal.
@each_way
def test_the_next_tokens_do_not_depend_on_the_number_of_ranks(text, documents, contexts_per_row):
    changed = {"documents": documents, "contexts_per_row": contexts_per_row, "tokens_per_step": 256}
    for step in (0, 7, 13):
        found = []
        for num_ranks in (1, 2, 4):
            # Tasks of their own: a process that resumes knows the step alone.
            shares = []
            for rank in range(num_ranks):
                task = CommonsenseTask(config(text, **changed), 3)
                shares.append(task.batch(task.stages[0], step, CPU, rank=rank, num_ranks=num_ranks))
            offsets = [i * shares[0].tokens.shape[1] for i in range(num_ranks)]
            tokens = torch.cat([share.tokens for share in shares], 1)
            labels = torch.cat([share.labels for share in shares])
            positions = torch.cat([share.positions + o for share, o in zip(shares, offsets, strict=True)], 1)
            cuts = torch.cat([share.cu_seqlens[:-1] + o for share, o in zip(shares, offsets, strict=True)])
            found.append(digest([(tokens, labels, positions, cuts)]))
        assert len(set(found)) == 1


# Property 2: killed three times, in epoch 2, in the middle of a document.
def test_a_killed_stream_goes_on_with_the_very_next_tokens(text):
    settings, num_steps = config(text), 40
    task = CommonsenseTask(settings, 1)
    (stage,) = task.stages
    undisturbed = [task.batch(stage, step, CPU) for step in range(num_steps)]
    kills = [9, 17, 30]
    # Of these steps one is in epoch 2, and a row of one begins within a document.
    assert any(step * stage.batch_size // stage.num_rows == 1 for step in kills)
    ends = set(task.shards["train"].document_ends.tolist()) | {0}
    begins = [int(x) * stage.row_tokens for x in task.train_examples(stage, kills[1], CPU)]
    assert not ends.issuperset(begins)
    resumed = []
    for start, stop in itertools.pairwise([0, *kills, num_steps]):
        fresh = CommonsenseTask(settings, 1)
        # One more was asked for before the kill.
        made = [fresh.batch(fresh.stages[0], step, CPU) for step in range(start, stop + 1)]
        resumed += made[: stop - start]
    assert digest(resumed) == digest(undisturbed)
    for kill in kills:
        assert digest(resumed[kill:]) == digest(undisturbed[kill:])


# Property 3: with a thread that prepares the next batch or without, in any order of questions.
def test_the_thread_that_prepares_batches_leaves_the_stream_as_it_is(text):
    task, plain = (CommonsenseTask(config(text), 1) for _ in range(2))
    (stage,) = task.stages
    steps = [0, 1, 2, 2, 7, 8, 3, 4, 0, *range(20)]
    found = []
    for i, step in enumerate(steps):
        found.append(task.batch(stage, step, CPU))
        if i == 5:
            task.release()
    assert digest(found) == digest([plain._share(step, 0, 1) for step in steps])
    # What was prepared is used.
    task.batch(stage, 30, CPU)
    assert task._prefetch._pending is not None
    prepared = task._prefetch._pending[1].result()
    assert task.batch(stage, 31, CPU).tokens is prepared.tokens
    # For one rank, and not for another.
    assert not torch.equal(task.batch(stage, 32, CPU, rank=1, num_ranks=2).tokens, plain._share(32, 0, 2).tokens)


# Property 5: loss is sum over tokens / tokens, not a mean of means.
@each_way
def test_the_mean_over_shares_is_the_sum_over_tokens_divided_by_tokens(text, documents, contexts_per_row):
    changed = {"documents": documents, "contexts_per_row": contexts_per_row, "tokens_per_step": 256}
    task, model = CommonsenseTask(config(text, **changed), 1), Table(torch.float64)
    (stage,) = task.stages
    uneven = False
    for step in range(4):
        whole = task.batch(stage, step, CPU)
        logits = model(whole.tokens, whole.positions, whole.cu_seqlens)[0]
        expected = F.cross_entropy(logits, whole.labels, reduction="sum") / len(whole.labels)
        gradient = torch.autograd.grad(expected, model.weight)[0]
        for num_ranks in (1, 2, 4):
            shares = [task.batch(stage, step, CPU, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
            losses = [task.loss(model, share) for share in shares]
            assert sum(loss.num_targets for loss in losses) == len(whole.labels)
            uneven |= len({loss.num_targets for loss in losses}) > 1
            mean = torch.stack([loss.mean for loss in losses]).mean()
            torch.testing.assert_close(mean, expected, rtol=1e-6, atol=0)
            torch.testing.assert_close(torch.autograd.grad(mean, model.weight)[0], gradient, rtol=1e-6, atol=1e-9)
    # Else a mean of means would have passed.
    assert uneven == (documents != "run_on")


def test_a_share_without_a_target_has_gradients_of_zeros(tmp_path, write_shards):
    write_shards(tmp_path / "train", [[]] * 16 + [[1] * 15])
    write_shards(tmp_path / "validation", [[1] * 20])
    task, model = CommonsenseTask(config(tmp_path, tokens_per_step=32), 1), Table()
    shares = [task.batch(task.stages[0], 0, CPU, rank=rank, num_ranks=2) for rank in range(2)]
    losses = [task.loss(model, share) for share in shares]
    assert sorted(loss.num_targets for loss in losses) == [0, 15]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.mean, model.weight)
        assert bool(gradient.any()) == (loss.num_targets > 0)
    nothing = CommonsenseTask(config(tmp_path, tokens_per_step=16), 1)
    with pytest.raises(ValueError, match="predicts nothing: documents of one token"):
        [nothing.batch(nothing.stages[0], step, CPU) for step in range(2)]


def test_validation_is_each_document_from_its_start(text):
    task, model = CommonsenseTask(config(text, documents="run_on"), 1), Table()
    (stage,), shards = task.stages, task.shards["validation"]
    stream, ends = shards.tokens(0, shards.num_tokens), shards.document_ends.tolist()
    nats, positions, lengths, num_bytes = [], [], [], 0.0
    for start, end, size in zip([0, *ends], ends, shards.document_bytes.tolist(), strict=False):
        read = min(end, 400) - start
        if read <= 0:
            break
        num_bytes += size * read / (end - start)
        # The target of the last token that is read may lie behind it, within its document.
        for place in range(start, min(end - 1, 400)):
            since_cut = (place - start) % 16
            logits = model.weight[stream[place]] * (1 + 0.1 * since_cut)
            nats.append(F.cross_entropy(logits, torch.tensor(stream[place + 1])).item())
            positions.append(since_cut + 1)
            lengths.append(end - start)
    found = task.evaluate(model, "validation", stage, CPU)
    assert found["loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-6)
    assert found["perplexity_per_byte"] == pytest.approx(math.exp(sum(nats) / num_bytes), rel=1e-6)
    for name, values in (("position", positions), ("length", lengths)):
        bins = {"1": (1, 1), "2": (2, 2), "3to4": (3, 4), "5to8": (5, 8), "9to16": (9, 16)}
        bins |= {"17to32": (17, 32), "33to64": (33, 64)}
        for label, (low, high) in bins.items():
            inside = [loss for loss, value in zip(nats, values, strict=True) if low <= value <= high]
            if inside:
                assert found.pop(f"loss/{name}{label}") == pytest.approx(sum(inside) / len(inside), rel=1e-6)
    assert set(found) == {"loss", "perplexity", "perplexity_per_byte"}
    # However many tokens the model sees at a time.
    for tokens_at_a_time in (16, 23, 10_000):
        again = Perplexity(shards, context=16, num_tokens=400, tokens_at_a_time=tokens_at_a_time)(model, CPU)
        assert again == pytest.approx(task.evaluate(model, "validation", stage, CPU), rel=1e-12)
    with pytest.raises(ValueError, match="split: got 'test'"):
        task.evaluate(model, "test", stage, CPU)
    with torch.no_grad():
        model.weight[3, 4] = math.nan
    with pytest.raises(FloatingPointError, match="the validation loss is nan"):
        task.evaluate(model, "validation", stage, CPU)


def test_validation_compiles_nothing_as_each_of_its_rows_has_a_length_of_its_own(text, compose_config):
    sizes = [
        f"task.vocab_size={VOCAB}",
        "scale.d_model=16",
        "scale.num_heads=2",
        "scale.head_k_dim=4",
        "scale.head_v_dim=4",
    ]
    model = build_model(typed(compose_config("model=palimpsa_d", *sizes)).model, 1)
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    for block in model.blocks:
        block.compile(dynamic=False, backend=count)
    shards = build_task(config(text), 1).shards["validation"]
    measure = Perplexity(shards, context=16, num_tokens=400, tokens_at_a_time=23)
    assert measure(model, CPU)["loss"] > 0
    assert not compiled
    model.hidden(torch.zeros((1, 16), dtype=torch.int64), cu_seqlens=torch.tensor([0, 16]))
    assert compiled


def test_the_losses_of_rows_average_to_their_mean():
    logits = torch.randn(2_500, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2_500) % 7
    torch.testing.assert_close(row_losses(logits, labels).mean(), F.cross_entropy(logits, labels))
    assert row_losses(logits, labels).shape == (2_500,)


def test_boundaries_are_padded_with_empty_sequences():
    for num_sequences in range(1, 40):
        cuts = torch.arange(num_sequences + 1) * 3
        padded = padded_boundaries(cuts)
        assert (len(padded) - 1).bit_count() == 1
        assert padded.unique().tolist() == cuts.tolist()
        assert len(padded) - 1 < 2 * num_sequences


def test_the_probes_contexts_are_whole(text):
    task = CommonsenseTask(config(text), 1)
    (stage,) = task.stages
    assert task.contexts(stage, 3, CPU).shape == (3, 16)
    all_of_them = task.contexts(stage, 10_000, CPU)
    assert len(all_of_them) == task.shards["validation"].num_tokens // 16


def test_tokens_are_whole_steps(text):
    task = build_task(config(text, num_steps=None, num_tokens=1_000), 1)
    assert task.max_steps == 8
    batch = task.batch(task.stages[0], 0, CPU)
    assert task.count_examples(batch) == task.stages[0].batch_size == 8
    result = task.stage_result(task.stages[0], {"loss": 1.5, "perplexity": 4.5, "perplexity_per_byte": 2.0}, None)
    assert result["epochs"] == 8 * 8 / task.stages[0].num_rows
    assert task.headline(result) == "validation loss 1.500, perplexity 4.5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 31}, r"task\.vocab_size: got 31, expected at least 32, the vocabulary of the tokenizer of "),
        (
            {"context": 4_096, "tokens_per_step": 4_096},
            r"task\.context: got rows of 4096 tokens, expected at most the ",
        ),
        ({"tokens_per_step": 120}, r"task\.tokens_per_step: got 120, expected a multiple of 16"),
        ({"num_tokens": 100}, r"task\.num_steps: got 20 with task\.num_tokens=100, expected one of them"),
        ({"num_steps": None}, r"task\.num_steps: got None with task\.num_tokens=None, expected one of them"),
        ({"documents": "reset_every_context"}, r"task\.contexts_per_row: got 1, expected at least 2 with"),
        ({"data": "absent"}, r"task\.data: got 'absent', expected a folder that scripts/prepare_text\.py wrote"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(text, changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        CommonsenseTask(config(**{"data": text, **changes}), 1)


def test_a_validation_split_that_will_not_do_is_named(tmp_path, write_shards):
    write_shards(tmp_path / "train", [[1] * 50])
    write_shards(tmp_path / "validation", [[1] * 10])
    with pytest.raises(ConfigError, match=r"task\.context: got 16, expected at most the 11 tokens of .*validation$"):
        CommonsenseTask(config(tmp_path, tokens_per_step=16), 1)
    write_shards(tmp_path / "validation", [[1] * 30], tokenizer="1" * 64)
    with pytest.raises(ConfigError, match=r"task\.data: got .*validation of another tokenizer than .*train, expected"):
        CommonsenseTask(config(tmp_path, tokens_per_step=16), 1)
    write_shards(tmp_path / "validation", [[]] * 30)
    with pytest.raises(ConfigError, match=r"task\.validation_tokens: got 9, expected more: .* documents of one token"):
        CommonsenseTask(config(tmp_path, tokens_per_step=16, validation_tokens=9), 1)


# Property 4, of a file: of the same size, under the same name.
def test_a_changed_byte_of_a_shard_is_named(tmp_path, write_text):
    write_text(tmp_path)
    path = tmp_path / "train/shard_00001.bin"
    content = np.fromfile(path, np.uint16)
    content[5] ^= 1
    content.tofile(path)
    with pytest.raises(ConfigError, match=r"shard_00001\.bin: got other bytes"):
        CommonsenseTask(config(tmp_path), 1)
    trusting = dataclasses.replace(config(tmp_path), verify="sizes")
    CommonsenseTask(trusting, 1)


SPLITS = ("train", "validation")


def edit_tokenizer(directory, **changes) -> None:
    """The manifest with other facts of its tokenizer, and the checksum that they ask for."""
    manifest = read_manifest(directory)
    changed = dataclasses.replace(manifest, tokenizer=dataclasses.replace(manifest.tokenizer, **changes))
    (directory / "manifest.json").write_text(changed.to_json(), encoding="utf-8")


@pytest.fixture
def byte_text(tmp_path):
    """Token shards of text, by bytes, with their golden ids."""
    tokenizer = load_tokenizer("bytes")
    for split in SPLITS:
        writer = ShardWriter(tmp_path / split, tokenizer=tokenizer.facts)
        writer.add(tokenizer.encode("A text of a few words. " * 30), 690)
        writer.finish()
    return tmp_path


# Property 14: one tokenizer, one id, held to at training.
def test_the_tokenizer_is_held_to_its_golden_ids_before_training(byte_text):
    assert list(CommonsenseTask(config(byte_text, vocab_size=257), 1).notes) == []
    golden = read_manifest(byte_text / "train").tokenizer.golden_ids
    changed = [golden[0], [1, *golden[1][1:]], *golden[2:]]
    edit_tokenizer(byte_text / "train", golden_ids=changed)
    with pytest.raises(ConfigError, match=r"task\.data: got .*validation with other golden ids than .*train, expected"):
        CommonsenseTask(config(byte_text, vocab_size=257), 1)
    edit_tokenizer(byte_text / "validation", golden_ids=changed)
    message = r"train: tokenizer: of ' Hello world' got the ids \[32, 72.*\], expected \[1, 72, .*\]: those of bytes"
    with pytest.raises(ConfigError, match=message):
        CommonsenseTask(config(byte_text, vocab_size=257), 1)
    for split in SPLITS:
        edit_tokenizer(byte_text / split, golden_ids=[])
    with pytest.raises(ConfigError, match=r"got 0 golden texts with the shards of bytes, expected 20"):
        CommonsenseTask(config(byte_text, vocab_size=257), 1)


@pytest.mark.parametrize("name", ["gone/tokenizer.model", "nobody/tokenizer"])
def test_a_tokenizer_that_is_not_here_is_told_and_not_needed(byte_text, name, monkeypatch):
    """Of a hub's name the cache is asked, and no network."""
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked the network"))
    for split in SPLITS:
        edit_tokenizer(byte_text / split, name=name)
    (note,) = CommonsenseTask(config(byte_text, vocab_size=257), 1).notes
    assert re.search(
        rf"train: its tokenizer was not held to the golden ids, .*\(tokenizer: got '{name}', expected", note
    )


def test_a_tokenizer_that_is_damaged_is_an_error(byte_text, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    for split in SPLITS:
        edit_tokenizer(byte_text / split, name=str(tmp_path / "tokenizer.model"))
    with pytest.raises(ConfigError, match=r"train: tokenizer: got .*tokenizer\.model, expected a SentencePiece model"):
        CommonsenseTask(config(byte_text, vocab_size=257), 1)


def test_ids_that_no_text_was_made_into_need_no_tokenizer(text):
    assert list(CommonsenseTask(config(text), 1).notes) == []


def test_a_folder_of_text_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    """As a stored config says it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text/train").mkdir(parents=True)
    assert split_folder("~/text", "train") == tmp_path / "text/train"
    with pytest.raises(ConfigError, match=r"task\.data: got '~/text', expected a folder"):
        split_folder("~/text", "validation")
