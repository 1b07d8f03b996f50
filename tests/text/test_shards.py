"""Token shards: what is written is read by position, and a file that does not fit the manifest is named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.text.files import MANIFEST, remove_checkpoints
from palimpsa.text.manifest import TokenizerFacts, json_sha256
from palimpsa.text.shards import ShardWriter, TokenShards

END = 9


def facts(vocab_size: int = 10) -> TokenizerFacts:
    return TokenizerFacts(name="test", kind="bytes", sha256="0" * 64, vocab_size=vocab_size, end_of_text=END)


def documents(vocab_size: int, num: int = 40) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, vocab_size, draw.integers(1, 30)) for _ in range(num)]


def write(directory: Path, vocab_size: int = 10, tokens_per_shard: int = 64) -> TokenShards:
    writer = ShardWriter(directory, tokenizer=facts(vocab_size), tokens_per_shard=tokens_per_shard)
    for place, document in enumerate(documents(vocab_size)):
        writer.add(document, num_bytes=place)
    return writer.finish()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(10, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
@pytest.mark.parametrize("tokens_per_shard", [5, 64, 10_000])
def test_every_stretch_is_the_one_that_was_written(vocab_size, dtype, tokens_per_shard, tmp_path):
    write(tmp_path, vocab_size, tokens_per_shard)
    shards = TokenShards.open(tmp_path, verify="hashes")
    whole = np.concatenate([np.append(one, END) for one in documents(vocab_size)])
    assert shards.manifest.dtype == dtype
    assert (shards.num_tokens, shards.num_documents, shards.end_of_text) == (len(whole), 40, END)
    assert max(len(one) for one in shards._maps) <= tokens_per_shard
    for start, stop in [(0, len(whole)), (0, 0), (63, 65), (64, 64), (5, 500), (len(whole), len(whole))]:
        found = shards.tokens(start, stop)
        assert (found.dtype, found.flags.writeable) == (np.int64, True)
        assert np.array_equal(found, whole[start:stop])
    assert np.array_equal(shards.document_bytes, np.arange(40))
    lengths = [len(one) + 1 for one in documents(vocab_size)]
    assert np.array_equal(shards.document_ends, np.cumsum(lengths))
    assert shards.document_ends.dtype == shards.document_bytes.dtype == np.int64


def test_a_large_id_is_stored_whole(tmp_path):
    writer = ShardWriter(tmp_path, tokenizer=facts(200_000))
    writer.add([199_999, 65_536, 0], 3)
    assert writer.finish().tokens(0, 4).tolist() == [199_999, 65_536, 0, END]


@pytest.mark.parametrize("span", [(-1, 3), (3, 2), (0, 10_000)])
def test_positions_outside_are_refused(span, tmp_path):
    with pytest.raises(ValueError, match="start, stop"):
        write(tmp_path).tokens(*span)


def test_a_copy_in_another_process_reads_the_same(tmp_path):
    shards = write(tmp_path)
    pickled = pickle.dumps(shards)
    assert len(pickled) < 1_000
    assert np.array_equal(pickle.loads(pickled).tokens(3, 200), shards.tokens(3, 200))


@pytest.mark.parametrize("ids", [[10], [-1]])
def test_ids_outside_of_the_vocabulary_are_refused(ids, tmp_path):
    with pytest.raises(ValueError, match="vocab_size=10"):
        ShardWriter(tmp_path, tokenizer=facts()).add(ids, 1)


def test_a_document_without_its_end_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, tokenizer=facts())
    with pytest.raises(ValueError, match="end_of_text=9"):
        writer.add_documents(np.array([1, 2]), np.array([2]), np.array([2]))


def test_no_documents_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="got no documents"):
        ShardWriter(tmp_path, tokenizer=facts()).finish()


def edit_manifest(directory: Path, change, *, checksum: bool) -> None:
    path = directory / MANIFEST
    values = json.loads(path.read_text())
    old = values.pop("checksum")
    change(values)
    path.write_text(json.dumps({**values, "checksum": json_sha256(values) if checksum else old}))


# What is done to a folder, and the file that the error names. Whether it takes hashes to see it.
DAMAGE = {
    "missing": ("shard_00001.bin", lambda d: (d / "shard_00001.bin").unlink(), False),
    "short": ("shard_00001.bin", lambda d: (d / "shard_00001.bin").write_bytes(b"\0\0"), False),
    "byte": ("shard_00001.bin", lambda d: flip(d / "shard_00001.bin"), True),
    "ends_byte": ("document_ends.npy", lambda d: flip(d / "document_ends.npy"), False),
    "bytes_byte": ("document_bytes.npy", lambda d: flip(d / "document_bytes.npy"), True),
    "ends_missing": ("document_ends.npy", lambda d: (d / "document_ends.npy").unlink(), False),
    "no_manifest": (MANIFEST, lambda d: (d / MANIFEST).unlink(), False),
    "no_json": (MANIFEST, lambda d: (d / MANIFEST).write_text("{"), False),
    "count": (
        MANIFEST,
        lambda d: edit_manifest(d, lambda v: v.update(num_tokens=v["num_tokens"] - 1), checksum=True),
        False,
    ),
    "silent_edit": (MANIFEST, lambda d: edit_manifest(d, lambda v: v.update(command="x"), checksum=False), False),
    "format": (MANIFEST, lambda d: edit_manifest(d, lambda v: v.update(format="other"), checksum=True), False),
    "key": (MANIFEST, lambda d: edit_manifest(d, lambda v: v.pop("tokenizer"), checksum=True), False),
    "documents": (
        "document_ends.npy",
        lambda d: edit_manifest(d, lambda v: v.update(num_documents=39), checksum=True),
        False,
    ),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_the_manifest_is_named(damage, tmp_path):
    file, do, needs_hashes = DAMAGE[damage]
    write(tmp_path)
    TokenShards.open(tmp_path, verify="hashes")
    do(tmp_path)
    if needs_hashes:
        TokenShards.open(tmp_path)
    with pytest.raises(ConfigError) as error:
        TokenShards.open(tmp_path, verify="hashes" if needs_hashes else "sizes")
    assert str(error.value).startswith(f"{tmp_path / file}: ")
    assert "\n" not in str(error.value)


def test_the_digest_is_of_what_changes_numbers(tmp_path):
    one, again, other = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", tokens_per_shard=65)
    assert one.digest == again.digest == TokenShards.open(tmp_path / "a").digest
    assert len({one.digest, other.digest, write(tmp_path / "d", vocab_size=70_000).digest}) == 3


@pytest.mark.parametrize("at", [[10], [1, 2, 25], [39]])
def test_a_writer_that_goes_on_writes_the_same(at, tmp_path):
    """What was added after the checkpoint is lost with the writer, and added again."""
    write(tmp_path / "whole")
    writer, place = ShardWriter(tmp_path / "parts", tokenizer=facts(), tokens_per_shard=64), 0
    for stop in at:
        while place < stop:
            writer.add(documents(10)[place], num_bytes=place)
            place += 1
        state = json.loads(json.dumps(writer.checkpoint()))
        for lost in documents(10)[place:]:
            writer.add(lost, 1)
        writer.checkpoint()
        writer = ShardWriter(tmp_path / "parts", tokenizer=facts(), tokens_per_shard=64)
        writer.restore(state)
    for rest in range(place, 40):
        writer.add(documents(10)[rest], num_bytes=rest)
    writer.finish()
    remove_checkpoints(tmp_path / "parts")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_checkpoint_whose_file_is_gone_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, tokenizer=facts(), tokens_per_shard=64)
    for document in documents(10):
        writer.add(document, 1)
    state = writer.checkpoint()
    (tmp_path / "shard_00000.bin").unlink()
    with pytest.raises(ConfigError, match=r"shard_00000.bin: missing"):
        ShardWriter(tmp_path, tokenizer=facts(), tokens_per_shard=64).restore(state)
