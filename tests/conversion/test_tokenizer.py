"""Tokenizers of every kind in the folder of a model: transformers makes the ids that the model was trained on."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.text.golden import SENTENCES, golden_ids
from palimpsa.text.tokenizers import load_tokenizer

# A checkout may have real ones beside it.
REAL = Path(os.environ.get("PALIMPSA_TEST_DATA", Path(__file__).resolve().parents[2].parent / "shared/data"))
TEXTS = [*SENTENCES, "a  b   c    d\n\n  e", " ", "  two", "x" * 100, "tab\tand\u3000wide"]


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def export_tokenizer(*arguments):
    from palimpsa.conversion.tokenizer import export_tokenizer

    return export_tokenizer(*arguments)


def library_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(folder)
    return [library.encode(text, add_special_tokens=False) for text in texts]


@pytest.fixture(params=["trained", "sentencepiece", "gpt2", "bytes"])
def own(request, tmp_path):
    """A small SentencePiece model, two published tokenizers where they are here, and bytes."""
    if request.param == "bytes":
        return load_tokenizer("bytes")
    if request.param == "trained":
        from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

        model = io.BytesIO()
        options = {"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
        options["remove_extra_whitespaces"] = False
        options["normalization_rule_name"] = "identity"
        SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 3), model_writer=model, **options)
        trained = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
        # As Mistral's runs of spaces: early among the ids, and late to be merged.
        pieces = [piece for piece in trained.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1]
        for number, piece in enumerate(pieces):
            piece.score = number - len(pieces)
        (tmp_path / "tokenizer.model").write_bytes(trained.SerializeToString())
        return load_tokenizer(str(tmp_path))
    folder = REAL / "tokenizers" / ("mistral" if request.param == "sentencepiece" else ".")
    if not folder.is_dir():
        pytest.skip(f"needs {REAL.name}/tokenizers beside the checkout, or PALIMPSA_TEST_DATA")
    return load_tokenizer(str(folder))


# Property 14.
def test_transformers_makes_the_same_ids_of_a_folder(own, tmp_path):
    from palimpsa.conversion.tokenizer import read_folder_tokenizer

    folder = tmp_path / "folder"
    folder.mkdir()
    assert export_tokenizer(own.facts, folder).endswith("AutoTokenizer makes the same ids of it")
    assert library_ids(folder, TEXTS) == [own.encode(text) for text in TEXTS]
    assert golden_ids(read_folder_tokenizer(folder)) == golden_ids(own)


def test_one_that_makes_other_ids_is_refused(own, tmp_path):
    facts = dataclasses.replace(own.facts, golden_ids=[*own.facts.golden_ids[:-1], [1]])
    with pytest.raises(ConfigError, match=r"expected \[1\]: those of"):
        export_tokenizer(facts, tmp_path)


def test_one_that_is_elsewhere_now_can_be_named(tmp_path):
    own = load_tokenizer("bytes")
    facts = dataclasses.replace(own.facts, name="gone/tokenizer.model")
    assert "not copied" in export_tokenizer(facts, tmp_path)
    assert os.listdir(tmp_path) == ["tokenizer_facts.json"]
    assert "copied, and AutoTokenizer" in export_tokenizer(facts, tmp_path, "bytes")
