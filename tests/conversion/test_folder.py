"""A trainer's checkpoint becomes a folder of transformers, and a folder a checkpoint, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palimpsa.text.golden import SENTENCES
from palimpsa.text.manifest import read_manifest


@pytest.mark.parametrize("model", ["palimpsa_d_tiny", "gated_deltanet_tiny", "transformer_tiny"])
def test_there_and_back_every_tensor_is_the_same_bits(model, convert, run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    directory, folder, back = run(model), tmp_path / "folder", tmp_path / "back.ckpt"
    assert convert("export", directory, folder) == 0
    saved = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    before, printed = saved["state_dict"], capsys.readouterr().out
    for name, weight in before.items():
        assert f"{name.removeprefix('model.')} " in printed
        assert str(list(weight.shape)) in printed
    assert f"{len(before)} tensors of {sum(x.numel() for x in before.values()):,} numbers" in printed
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in before.items())
    assert (loaded.config.context, loaded.config.eos_token_id, loaded.config.name) == (64, 256, model)
    assert convert("import", folder, back) == 0
    again = torch.load(back, weights_only=True)
    assert again["state_dict"].keys() == before.keys()
    assert all(torch.equal(again["state_dict"][name], before[name]) for name in before)
    assert again["model_config"] == saved["model_config"]
    assert again["global_step"] == 70
    # And what came back is exported too, without what only a run knows.
    assert convert("export", back, tmp_path / "again") == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "| validation loss, nats a token | not known |" in (tmp_path / "again/README.md").read_text()


def test_the_card_says_data_steps_loss_and_commit(convert, run, data, tmp_path):
    assert convert("export", run() / "checkpoints/last.ckpt", tmp_path / "folder") == 0
    card = (tmp_path / "folder/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for row in (
        "| optimiser steps | 70 |",
        "| context | 64 |",
        "| validation loss, nats a token | 1.2346 |",
        "| commit | abc123, with changes that were not committed |",
        f"| digest of the training tokens | {read_manifest(data / 'train').digest} |",
    ):
        assert row in card
    assert "persuasion" in card.lower()
    # What somebody else chose is no Markdown, and no path of this machine goes out.
    assert "| device | a | b |" not in card
    assert str(data) not in card
    assert str(data) not in (tmp_path / "folder/training.json").read_text()


# Property 14.
def test_the_tokenizer_travels_and_is_held_to_its_golden_ids(convert, run, tmp_path, capsys):
    from transformers import AutoTokenizer

    from palimpsa.conversion.tokenizer import read_folder_tokenizer

    folder = tmp_path / "folder"
    assert convert("export", run(), folder) == 0
    assert "AutoTokenizer makes the same ids" in capsys.readouterr().out
    library, own = AutoTokenizer.from_pretrained(folder), read_folder_tokenizer(folder)
    text = SENTENCES[5] + "é 🙂 <|endoftext|> \x00\x7f"
    assert library.encode(text) == own.encode(text) == list(text.encode())
    assert library.decode(own.encode(text)) == text
    assert library.eos_token_id == 256
    facts = json.loads((folder / "tokenizer_facts.json").read_text())
    facts["golden_ids"][0] = [1]
    (folder / "tokenizer_facts.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"of 'Hello world' got the ids .*, expected \[1\]"):
        read_folder_tokenizer(folder)


def test_a_tokenizer_that_transformers_reads_otherwise_stays_ours(convert, run, tmp_path, monkeypatch, capsys):
    from palimpsa.conversion import tokenizer

    made = tokenizer._byte_tokenizer

    def wrong(facts):
        library = made(facts)
        library.pre_tokenizer = None
        return library

    monkeypatch.setattr(tokenizer, "_byte_tokenizer", wrong)
    assert convert("export", run(), tmp_path / "folder") == 0
    assert "for palimpsa alone: as transformers reads it, it makes other ids" in capsys.readouterr().out
    assert [path for path in os.listdir(tmp_path / "folder") if "tokenizer" in path] == ["tokenizer_facts.json"]


def test_without_its_data_a_model_is_exported_and_the_card_says_so(convert, run, tmp_path, capsys):
    directory = run()
    config = json.loads((directory / "config.json").read_text())
    for change, told in (({"data": "gone"}, "are not here"), ({"train_digest": "0"}, "has other data than")):
        stored = {**config, "task": {**config["task"], **change}}
        (directory / "config.json").write_text(json.dumps(stored))
        folder = tmp_path / told.replace(" ", "_")
        assert convert("export", directory, folder) == 0
        assert told in capsys.readouterr().out
        assert "| data | not known |" in (folder / "README.md").read_text()
        assert not (folder / "tokenizer_facts.json").exists()


def test_the_script_says_how():
    script = Path(__file__).resolve().parents[2] / "scripts/convert.py"
    done = subprocess.run([sys.executable, script, "-h"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "{export,import,metaplastic}" in done.stdout
