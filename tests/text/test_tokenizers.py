"""Tokenizers: one text, one list of ids, whoever asks; and golden ids that tell another tokenizer from this one."""

import dataclasses
import io
import json
import pickle
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from palimpsa.config.errors import ConfigError
from palimpsa.text.golden import SENTENCES, check_tokenizer
from palimpsa.text.manifest import read_manifest
from palimpsa.text.own_tokenizer import check_own_tokenizer, load_own_tokenizer
from palimpsa.text.shards import ShardWriter
from palimpsa.text.tokenizers import BYTES, TokenizerMissingError, build_tokenizer, find_tokenizer, load_tokenizer

from .conftest import texts

VOCAB = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """tokenizer.model, tokenizer.json and GPT-2's two files, each trained on a few words."""
    folder = tmp_path_factory.mktemp("tokenizers")
    lines = [*texts(40), *SENTENCES] * 3
    model = io.BytesIO()
    options = {"vocab_size": VOCAB, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    for name in ("sp", "all"):
        (folder / name).mkdir()
        (folder / name / "tokenizer.model").write_bytes(model.getvalue())
    trained = Library(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    trained.train_from_iterator(
        lines,
        BpeTrainer(vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False),
    )
    # A model's own length, which must not cut what it is trained on.
    trained.decoder = ByteLevelDecoder()
    trained.enable_truncation(5)
    trained.enable_padding()
    for name in ("json", "gpt2", "other"):
        (folder / name).mkdir()
    trained.save(str(folder / "json/tokenizer.json"))
    saved = json.loads((folder / "json/tokenizer.json").read_text())["model"]
    (folder / "gpt2/encoder.json").write_text(json.dumps(saved["vocab"]))
    merges = "\n".join(" ".join(one) for one in saved["merges"])
    (folder / "gpt2/vocab.bpe").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    # Two ids in each other's place.
    vocabulary = dict(saved["vocab"])
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]
    (folder / "other/encoder.json").write_text(json.dumps(vocabulary))
    (folder / "other/vocab.bpe").write_bytes((folder / "gpt2/vocab.bpe").read_bytes())
    return folder


NAMES = {
    "bytes": (BYTES, 257, 256),
    "sentencepiece": ("sp/tokenizer.model", VOCAB, 2),
    "sentencepiece_folder": ("all", VOCAB, 2),
    "json": ("json/tokenizer.json", VOCAB, 0),
    "gpt2": ("gpt2", VOCAB, 0),
}


def name_of(key: str, folder: Path) -> str:
    return BYTES if key == "bytes" else str(folder / NAMES[key][0])


@pytest.mark.parametrize("key", NAMES)
def test_ids_are_those_of_the_vocabulary_and_give_the_text_back(key, folder):
    tokenizer = load_tokenizer(name_of(key, folder))
    _, vocab_size, end = NAMES[key]
    assert (tokenizer.facts.vocab_size, tokenizer.facts.end_of_text) == (vocab_size, end)
    for text in SENTENCES:
        ids = tokenizer.encode(text)
        assert max(ids) < vocab_size
        assert end not in ids, "what looks like a special token is text"
        decoded = tokenizer.decode([*ids, end])
        if "sentencepiece" not in key:
            # Which normalises: NFKC, and white space.
            assert decoded == text
        assert tokenizer.decode(tokenizer.encode(decoded)) == decoded


@pytest.mark.parametrize("key", NAMES)
def test_many_texts_have_the_ids_of_each_and_another_process_makes_the_same(key, folder):
    files = find_tokenizer(name_of(key, folder))
    tokenizer = build_tokenizer(files)
    again = build_tokenizer(pickle.loads(pickle.dumps(files)))
    assert tokenizer.facts == again.facts
    assert tokenizer.facts.golden_ids == [tokenizer.encode(text) for text in SENTENCES]
    documents = texts(20)
    assert [list(map(int, ids)) for ids in again.encode_batch(documents)] == [
        tokenizer.encode(text) for text in documents
    ]
    assert max(map(len, tokenizer.encode_batch(documents))) > 100


def shards(folder: Path, directory: Path, key: str):
    tokenizer = load_tokenizer(name_of(key, folder))
    writer = ShardWriter(directory, tokenizer=tokenizer.facts)
    writer.add(tokenizer.encode("one"), 3)
    return writer.finish().manifest


@pytest.mark.parametrize("key", NAMES)
def test_the_tokenizer_of_the_shards_is_known_again(key, folder, tmp_path):
    shards(folder, tmp_path, key)
    manifest = read_manifest(tmp_path)
    check_tokenizer(manifest, load_tokenizer(name_of(key, folder)))
    for other in NAMES:
        if {key, other} not in ({"json", "gpt2"}, {"sentencepiece", "sentencepiece_folder"}) and key != other:
            with pytest.raises(ConfigError, match="tokenizer: of 'Hello world' got the ids"):
                check_tokenizer(manifest, load_tokenizer(name_of(other, folder)))


def test_two_ids_in_each_others_place_are_seen(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer: of .* got the ids"):
        check_tokenizer(shards(folder, tmp_path, "gpt2"), load_tokenizer(str(folder / "other")))


def test_another_librarys_ids_of_the_same_file_are_seen(folder, tmp_path):
    """transformers puts no space before the first word, or another one."""
    manifest = shards(folder, tmp_path, "sentencepiece")
    tokenizer = load_tokenizer(name_of("sentencepiece", folder))

    class WithoutItsFirstSpace:
        def encode(self, text: str) -> list[int]:
            return tokenizer.encode("\n" + text)[1:]

    with pytest.raises(ConfigError, match="tokenizer: of 'Hello world' got the ids"):
        check_tokenizer(manifest, WithoutItsFirstSpace())


def test_shards_without_golden_ids_are_refused(folder, tmp_path):
    manifest = shards(folder, tmp_path, "bytes")
    bare = dataclasses.replace(manifest, tokenizer=dataclasses.replace(manifest.tokenizer, golden_ids=[]))
    with pytest.raises(ConfigError, match="got 0 golden texts"):
        check_tokenizer(bare, load_tokenizer(BYTES))


def test_there_are_20_golden_texts():
    assert len(set(SENTENCES)) == len(SENTENCES) == 20


@pytest.mark.parametrize("key", ["sentencepiece", "json", "gpt2"])
def test_the_end_of_text_can_be_said(key, folder):
    name = name_of(key, folder)
    found = load_tokenizer(name, end_of_text="e")
    assert found.facts.end_of_text not in (0, 2)
    with pytest.raises(ConfigError, match="end_of_text: got <end>"):
        load_tokenizer(name, end_of_text="<end>")


def test_bytes_have_an_end_of_their_own():
    with pytest.raises(ConfigError, match="end_of_text: got 'x', expected null"):
        load_tokenizer(BYTES, end_of_text="x")


WRONG = {
    "absent.model": (None, "expected a file or folder that there is"),
    "a/b/c": (None, "expected a file or folder that there is"),
    "broken.model": (b"no model", "expected a SentencePiece model: it cannot be read"),
    "empty.model": (b"", "expected a SentencePiece model: it cannot be read"),
    "broken.json": (b"{", "expected a tokenizer: "),
    "other.json": (b"{}", "expected a tokenizer: "),
    "text.txt": (b"x", "expected a .model, a .json, or a folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_tokenizer_is_told(name, tmp_path):
    content, said = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(str(tmp_path / name))
    assert str(error.value).startswith("tokenizer: got ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"expected one with tokenizer\.model, or tokenizer\.json, or encoder"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("key", NAMES)
def test_shards_find_their_tokenizer_again_with_its_end_of_text(key, folder, tmp_path):
    manifest = shards(folder, tmp_path, key)
    found = load_own_tokenizer(manifest)
    assert found.facts == manifest.tokenizer
    assert check_own_tokenizer(manifest) is None
    if key == "bytes":
        return
    # Said by hand when the shards were made: a token that the library knows nothing special of.
    own = load_tokenizer(name_of(key, folder), end_of_text="e")
    manifest = dataclasses.replace(manifest, tokenizer=own.facts)
    assert load_own_tokenizer(manifest).facts == own.facts


def test_a_tokenizer_from_the_hubs_cache_is_held_to_the_golden_ids(folder, tmp_path, monkeypatch):
    manifest = shards(folder, tmp_path, "gpt2")
    facts = dataclasses.replace(manifest.tokenizer, name="some/tokenizer")
    manifest = dataclasses.replace(manifest, tokenizer=facts)
    with pytest.raises(TokenizerMissingError, match=r"tokenizer: got 'some/tokenizer', expected .*hub's cache"):
        load_own_tokenizer(manifest)
    assert "some/tokenizer" in str(check_own_tokenizer(manifest))
    for name, fits in (("gpt2", True), ("other", False)):

        def in_cache(repository, file, revision, place=folder / name):
            assert (repository, revision) == ("some/tokenizer", None)
            return str(place / file) if (place / file).exists() else None

        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", in_cache)
        if fits:
            assert check_own_tokenizer(manifest) is None
        else:
            with pytest.raises(ConfigError, match=r"tokenizer: of .* got the ids .*: those of some/tokenizer"):
                check_own_tokenizer(manifest)
