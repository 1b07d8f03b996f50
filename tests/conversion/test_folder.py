"""A trainer's checkpoint becomes a folder of transformers, and a folder a checkpoint, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsa.config.compose import compose_config
from palimpsa.config.schema import typed
from palimpsa.model.build import build_model
from palimpsa.text.command import prepare_text_main
from palimpsa.text.golden import SENTENCES
from palimpsa.text.manifest import read_manifest

SIZES = ("model.d_model=32", "model.num_layers=1", "model.channel_width=32", "model.mixer.num_heads=2")


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def convert(*arguments: object) -> int:
    from palimpsa.conversion.command import convert_main

    return convert_main([str(one) for one in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Token shards of the shipped text."""
    folder = tmp_path_factory.mktemp("data")
    assert prepare_text_main(["source=sample", "tokenizer=bytes", f"directory={folder}"]) == 0
    return folder


@pytest.fixture
def run(data, tmp_path):
    """Writes the directory of a run on them, as a run leaves it: `run("palimpsa_m_tiny")`."""

    def write(model: str = "palimpsa_d_tiny") -> Path:
        from palimpsa.training.checkpoint import CHECKSUM_KEY, checksum

        overrides = ["task=commonsense", f"task.data={data}", f"model=lm/{model}", *SIZES, "task.context=64"]
        config = dataclasses.asdict(typed(compose_config(overrides)))
        config["task"]["train_digest"] = read_manifest(data / "train").digest
        network = build_model(typed(compose_config(overrides)).model, 3)
        content = {
            "state_dict": {f"model.{name}": weight for name, weight in network.state_dict().items()},
            "model_config": config["model"],
            "global_step": 70,
        }
        directory = tmp_path / "run"
        (directory / "checkpoints").mkdir(parents=True)
        torch.save({**content, CHECKSUM_KEY: checksum(content)}, directory / "checkpoints/last.ckpt")
        (directory / "config.json").write_text(json.dumps(config))
        stages = [{"validation_loss": 1.23456, "validation_perplexity_per_byte": 3.5}]
        provenance = {"git_revision": "abc123", "git_dirty": True, "device": "a | b", "versions": {"torch": "1"}}
        result = {"stages": stages, "provenance": provenance, "config_hash": "0f"}
        (directory / "result.json").write_text(json.dumps(result))
        return directory

    return write


@pytest.mark.parametrize("model", ["palimpsa_d_tiny", "gated_deltanet_tiny", "transformer_tiny"])
def test_there_and_back_every_tensor_is_the_same_bits(model, run, tmp_path, capsys):
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


def test_the_card_says_data_steps_loss_and_commit(run, data, tmp_path):
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
def test_the_tokenizer_travels_and_is_held_to_its_golden_ids(run, tmp_path, capsys):
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


def test_a_tokenizer_that_transformers_reads_otherwise_stays_ours(run, tmp_path, monkeypatch, capsys):
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


def test_without_its_data_a_model_is_exported_and_the_card_says_so(run, tmp_path, capsys):
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


def test_bad_input_is_one_line_and_nothing_is_left_half_written(run, tmp_path, capsys, monkeypatch):
    directory, taken, empty, new = run(), tmp_path / "taken", tmp_path / "empty", tmp_path / "new"
    for folder in (taken, empty):
        folder.mkdir()
    for name, kind in (("llama", "llama"), ("half", "palimpsa")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    before = set(os.listdir(tmp_path))
    for arguments, told in (
        (("export", directory, taken), "is there already, expected a new folder"),
        (("export", tmp_path / "gone.ckpt", new), "gone.ckpt: not there, expected a checkpoint"),
        (("export", tmp_path / "bad.ckpt", new), "cannot be read"),
        (("export", empty, new), "got no checkpoint in it"),
        (("export", directory, new, "--tokenizer", "gone.model"), "got 'gone.model', expected a file"),
        (("import", empty, new), "got no config.json in it, expected the folder of a model"),
        (("import", tmp_path / "llama", new), "got a model of type 'llama', expected 'palimpsa'"),
        (("import", tmp_path / "half", new), "got no model that can be loaded"),
        (("import", empty, taken), "is there already, expected a new file"),
    ):
        capsys.readouterr()
        assert convert(*arguments) == 2, arguments
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert told in line
        assert set(os.listdir(tmp_path)) == before

    from palimpsa.conversion import folder as room

    def full_disk(*_):
        raise OSError(28, "No space left", "README.md")

    monkeypatch.setattr(room, "model_card", full_disk)
    assert convert("export", directory, new) == 1
    assert "error: README.md: No space left\n" in capsys.readouterr().err
    assert set(os.listdir(tmp_path)) == before
    # The weights are written by another language, with errors of its own.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert convert("export", directory, new) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(f"error: {new}: .*File too large", capsys.readouterr().err)
    assert set(os.listdir(tmp_path)) == before


def test_a_folder_of_more_weights_than_its_config_says_is_refused(run, tmp_path, capsys):
    folder, new = tmp_path / "folder", tmp_path / "new.ckpt"
    assert convert("export", run(), folder) == 0
    facts = folder / "training.json"
    facts.write_text('{"steps": "many"}')
    assert convert("import", folder, new) == 2
    assert "training.json: steps: got 'many', expected a number" in capsys.readouterr().err
    facts.unlink()
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "model.blocks.1.mixer_norm.weight": torch.ones(32)}, path, {"format": "pt"})
    assert convert("import", folder, new) == 2
    assert "got weights model.blocks.1.mixer_norm.weight and 0 more, which" in capsys.readouterr().err
    assert not new.exists()


def test_weights_of_another_model_and_a_tokenizer_that_is_too_large_are_refused(run, tmp_path, capsys):
    directory = run()
    path = directory / "checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved["sha256"]
    for changes, told in (
        ({"num_layers": 2}, "got blocks.1."),
        ({"vocab_size": 200}, "got 257 words of bytes, expected at most the 200 of the model"),
        ({"num_layers": 0}, "last.ckpt: model_config: num_layers: got 0, expected >= 1"),
        ({"mixer": {"_target_": "no.Mixer"}}, "last.ckpt: model_config: mixer._target_: got 'no.Mixer'"),
    ):
        torch.save({**saved, "model_config": saved["model_config"] | changes}, path)
        assert convert("export", directory, tmp_path / "folder") == 2
        assert told in capsys.readouterr().err
    torch.save({**saved, "model_config": {}}, path)
    assert convert("export", directory, tmp_path / "folder") == 2
    assert "last.ckpt: model_config: has no name, expected name, label, " in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_the_script_says_how():
    script = Path(__file__).resolve().parents[2] / "scripts/convert.py"
    done = subprocess.run([sys.executable, script, "-h"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "{export,import}" in done.stdout
