"""What cannot be converted is told in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_bad_input_is_one_line_and_nothing_is_left_half_written(convert, run, tmp_path, capsys, monkeypatch):
    directory, taken, empty, new = run(), tmp_path / "taken", tmp_path / "empty", tmp_path / "new"
    for folder in (taken, empty):
        folder.mkdir()
    for name, kind in (("llama", "llama"), ("half", "palimpsa")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    (tmp_path / "half/model.safetensors").write_bytes(b"")
    before = set(os.listdir(tmp_path))
    for arguments, told in (
        (("export", directory, taken), "is there already, expected a new folder"),
        (("export", tmp_path / "gone.ckpt", new), "gone.ckpt: not there, expected a checkpoint"),
        (("export", tmp_path / "bad.ckpt", new), "cannot be read"),
        (("export", tmp_path / "half/model.safetensors", new), "a model's folder alone, expected"),
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
    assert re.fullmatch(f"error: {new}: .*File too large.*\n", capsys.readouterr().err)
    assert set(os.listdir(tmp_path)) == before
    # No folder can be where a file is.
    place = tmp_path / "bad.ckpt/new"
    assert convert("export", directory, place) == 1
    assert capsys.readouterr().err == f"error: {place}: Not a directory\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_leaves_nothing(number, convert, run, tmp_path, capsys, monkeypatch, request):
    from palimpsa.conversion import folder as room

    directory = run("palimpsa_d_nometa_tiny")
    before, handler = set(os.listdir(tmp_path)), signal.getsignal(signal.SIGTERM)

    def interrupted(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)

    # Whoever started the tests may have had SIGINT ignored, as a shell does in the background.
    before_sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before_sigint))
    # After the weights.
    monkeypatch.setattr(room, "storable", interrupted)
    for command in ("export", "metaplastic"):
        assert convert(command, directory, tmp_path / "new") == 130
        assert capsys.readouterr().err.endswith("interrupted; nothing is written\n")
        assert set(os.listdir(tmp_path)) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_model_that_cannot_be_compared_or_learn_is_not_converted(convert, run, tmp_path, capsys):
    directory, new = run("palimpsa_d_nometa_tiny"), tmp_path / "new"
    assert convert("metaplastic", directory, new, "--strength", "1e-46") == 2
    assert "--strength: got 1e-46, expected more: softplus(s) would be 0 in torch.float32" in capsys.readouterr().err
    path = directory / "checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved["sha256"]
    weights = saved["state_dict"]
    embedding = {"model.embedding.weight": torch.zeros_like(weights["model.embedding.weight"])}
    for changed, code, told in (
        ({name: 1e20 * weight for name, weight in weights.items()}, 2, f"{directory}: got logits that are no finite"),
        (weights | embedding, 0, "logits on 512 random tokens within 0.0e+00 of the source's"),
    ):
        saved["state_dict"] = changed
        torch.save(saved, path)
        assert convert("metaplastic", directory, new) == code
        printed = capsys.readouterr()
        assert told in printed.out + printed.err
        assert new.exists() == (code == 0)


def test_a_folder_of_more_weights_than_its_config_says_is_refused(convert, run, tmp_path, capsys):
    folder, new = tmp_path / "folder", tmp_path / "new.ckpt"
    assert convert("export", run(), folder) == 0
    facts = folder / "training.json"
    facts.write_text('{"steps": "many"}')
    assert convert("import", folder, new) == 2
    assert 'training.json: steps is "many", expected an integer' in capsys.readouterr().err
    facts.unlink()
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "model.blocks.1.mixer_norm.weight": torch.ones(32)}, path, {"format": "pt"})
    assert convert("import", folder, new) == 2
    assert "got weights model.blocks.1.mixer_norm.weight and 0 more, which" in capsys.readouterr().err
    assert not new.exists()


def test_weights_of_another_model_and_a_tokenizer_that_is_too_large_are_refused(convert, run, tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("config", lambda _: {}, "config.json: seed is missing, expected an integer >= 0"),
        ("config", lambda found: {**found, "task": {}}, "config.json: task.name is missing, expected a name for files"),
        ("config", lambda found: {**found, "task": []}, "config.json: task is [], expected an object"),
        ("config", lambda found: {**found, "optimizer": {"lr": "high"}}, 'config.json: optimizer.lr is "high", exp'),
        ("config", lambda found: {**found, "task": found["task"] | {"data": None}}, "config.json: task.data is null"),
        (
            "config",
            lambda found: {**found, "task": found["task"] | {"context": "64"}},
            'task.context is "64"',
        ),
        ("result", lambda found: {**found, "stages": {}}, "result.json: stages is {}, expected a list"),
        ("result", lambda found: {**found, "stages": [1]}, "result.json: stages[0] is 1, expected an object"),
        (
            "result",
            lambda found: {**found, "stages": [{"validation_loss": "low"}]},
            "stages[0].validation_loss is",
        ),
        ("result", lambda found: {**found, "provenance": []}, "result.json: provenance is [], expected an object"),
    ],
)
def test_a_run_whose_files_lack_a_key_is_one_line_that_names_both(file, change, told, convert, run, tmp_path, capsys):
    directory = run()
    path = directory / f"{file}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert convert("export", directory, tmp_path / "folder") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {directory}/{file}.json: ")
    assert told in line
    assert not (tmp_path / "folder").exists()


def test_a_run_that_failed_early_is_exported_without_what_it_does_not_know(convert, run, tmp_path):
    directory = run()
    (directory / "result.json").write_text(json.dumps({"status": "failed", "stages": []}))
    assert convert("export", directory, tmp_path / "folder") == 0
    assert "| commit | not known |" in (tmp_path / "folder/README.md").read_text()


def test_weights_that_are_no_numbers_are_refused_by_name_in_both_directions(convert, run, tmp_path, capsys):
    """Of such a model every word is a guess; a tensor of NaN is no other tensor."""
    directory, folder = run(), tmp_path / "folder"
    assert convert("export", directory, folder) == 0
    capsys.readouterr()
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = torch.nan
    weights["model.blocks.0.mixer_norm.weight"][:2] = torch.inf
    save_file(weights, path, {"format": "pt"})
    told = "with 2 of its 32 numbers NaN or infinite, and 1 more weights hold some, expected finite weights"
    assert convert("import", folder, tmp_path / "new.ckpt") == 2
    assert f"{folder}: got blocks.0.mixer_norm.weight {told}" in capsys.readouterr().err

    from palimpsa.conversion.checkpoint import write_weights

    saved = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    given = {name: weights[name] for name in saved["state_dict"]}
    write_weights(tmp_path / "nan.ckpt", {key[6:]: x for key, x in given.items()}, saved["model_config"], 70)
    assert convert("export", tmp_path / "nan.ckpt", tmp_path / "other") == 2
    assert f"nan.ckpt: got blocks.0.mixer_norm.weight {told}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "new.ckpt").exists()
