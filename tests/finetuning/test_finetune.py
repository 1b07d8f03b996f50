"""From a trained model to an exported metaplastic one, by one command that goes on where it stopped."""

import json
import os
from pathlib import Path

import pytest
import torch

TEXT = (
    *("task.context=16", "task.tokens_per_step=128", "task.num_steps=6", "task.warmup_steps=2"),
    *("task.validation_every=3", "task.validation_tokens=200", "trainer.progress_bar=false", "logger=csv"),
)


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
@pytest.fixture
def finetune(monkeypatch):
    """The exit code of a command line."""

    def call(*arguments: object) -> int:
        from palimpsa.finetuning.command import finetune_main

        monkeypatch.setattr("sys.argv", ["finetune.py"])
        try:
            return finetune_main([str(one) for one in arguments])
        except SystemExit as stop:
            return int(str(stop.code))

    return call


def exported(text: str) -> Path:
    (line,) = [line for line in text.splitlines() if line.startswith("model: ")]
    return Path(line.removeprefix("model: ").partition(",")[0])


def test_a_mamba2_of_transformers_becomes_a_metaplastic_model_that_was_trained(
    mamba2, finetune, write_text, tmp_path, capsys
):
    from palimpsa.conversion.folder import load_folder

    data = write_text(tmp_path / "text")
    command = (mamba2, "task=commonsense", f"task.data={data}", f"results_dir={tmp_path}/out", *TEXT)
    assert finetune(*command) == 0
    out = capsys.readouterr().out
    (place,) = (tmp_path / "out/converted").glob("mamba2_*[0-9a-f]")
    assert f"converted: {place}" in out
    assert "created" in place.with_name(f"{place.name}.txt").read_text()
    model, start = load_folder(exported(out)), load_folder(place)
    before, after = start.model.state_dict(), model.model.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("plasticity.up" in name for name in moved)
    assert any("in_proj" in name for name in moved)
    assert "6 steps from" in out
    # Again: nothing is done twice, and the same is told.
    assert finetune(*command) == 0
    assert exported(capsys.readouterr().out) == exported(out)
    # What was exported is a start itself, and is not converted again.
    frozen = ("optimizer.freeze=[old]", "task.directory=again", f"results_dir={tmp_path}/out")
    assert finetune(exported(out), f"task.data={data}", *TEXT, *frozen) == 0
    out = capsys.readouterr().out
    assert "converted:" not in out
    last = load_folder(exported(out)).model.state_dict()
    assert {name for name in last if not torch.equal(after[name], last[name])} <= {n for n in last if "plasticity" in n}


def test_a_conversion_lies_where_the_run_does_and_is_interrupted_in_one_line(
    mamba2, finetune, write_text, tmp_path, capsys, monkeypatch
):
    from palimpsa.conversion import folder as room

    command = (mamba2, "task=commonsense", f"task.data={write_text(tmp_path / 'text')}", *TEXT)
    monkeypatch.chdir(tmp_path)
    assert finetune(*command, "++results_dir='of mine, [1]'") == 0
    assert {path.name for path in (tmp_path / "of mine, [1]").iterdir()} >= {"converted", "runs"}
    capsys.readouterr()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "storable", interrupted)
    assert finetune(*command, "results_dir=out") == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on where it stopped\n")
    assert not os.listdir(tmp_path / "out/converted")


def test_a_run_goes_on_with_its_own_task_converted_or_as_it_is(trained, finetune, tiny_overrides, tmp_path, capsys):
    directory = trained("palimpsa_d_nometa")
    more = (*[one for one in tiny_overrides if not one.startswith("scale")], f"results_dir={tmp_path}/out")
    assert finetune(directory, *more) == 0
    converted = exported(capsys.readouterr().out)
    assert finetune(directory, "--as-it-is", *more) == 0
    control = exported(capsys.readouterr().out)
    configs = [json.loads((folder / "config.json").read_text())["mixer"] for folder in (converted, control)]
    assert [one.get("metaplastic", True) for one in configs] == [True, False]
    stored = [json.loads((folder.parent / "config.json").read_text()) for folder in (converted, control)]
    assert stored[1]["start"]["weights"] == str(directory)
    assert stored[0]["start"]["digest"] != stored[1]["start"]["digest"]
    assert {one["task"]["directory"] for one in stored} == {"finetune"}


def test_a_mamba2_of_transformers_has_its_control_too(mamba2, finetune, write_text, tmp_path, capsys):
    """Of the same weights as what becomes metaplastic, and without what that gets."""
    from palimpsa.conversion.folder import load_folder

    data = write_text(tmp_path / "text")
    command = (mamba2, "--as-it-is", "task=commonsense", f"task.data={data}", f"results_dir={tmp_path}/out", *TEXT)
    assert finetune(*command, "--convert", "x") == 2
    assert "--convert: got 'x' (unrecognized arguments: x)" in capsys.readouterr().err
    assert finetune(*command, "--convert", "--norm-groups 1") == 0
    folder = exported(capsys.readouterr().out)
    (start,) = (tmp_path / "out/converted").glob("mamba2_*[0-9a-f]")
    before, after = load_folder(start).model.state_dict(), load_folder(folder).model.state_dict()
    assert before.keys() == after.keys()
    assert not [name for name in before if "plasticity" in name]
    assert not torch.equal(before["blocks.0.mixer.in_proj.weight"], after["blocks.0.mixer.in_proj.weight"])
    stored = json.loads((folder.parent / "config.json").read_text())
    assert stored["optimizer"]["new_lr"] is None
    assert (stored["model"]["name"], stored["model"]["mixer"]["metaplastic"]) == ("mamba2", False)


def test_text_of_another_tokenizer_is_refused(finetune, write_text, compose_config, tmp_path, capsys):
    """The folder of a run on bytes, on shards that another tokenizer made."""
    from palimpsa.config.schema import typed
    from palimpsa.text.command import prepare_text_main
    from palimpsa.training.run import run

    novel = tmp_path / "novel"
    assert prepare_text_main(["source=sample", "tokenizer=bytes", f"directory={novel}"]) == 0
    sizes = ("model.d_model=32", "model.num_layers=1", "model.channel_width=16", f"results_dir={tmp_path}/trained")
    config = compose_config("task=commonsense", f"task.data={novel}", "model=lm/palimpsa_d_tiny", *sizes, *TEXT)
    run(typed(config))
    directory = config.run_dir
    assert finetune(directory, f"results_dir={tmp_path}/out", *TEXT) == 0
    folder = exported(capsys.readouterr().out)
    # On its own text, where no other is named.
    assert json.loads((folder.parent / "config.json").read_text())["task"]["data"] == str(novel)
    other = write_text(tmp_path / "text")
    assert finetune(folder, "task=commonsense", f"task.data={other}", f"results_dir={tmp_path}/new", *TEXT) == 2
    assert "does not fit" in capsys.readouterr().err
    assert finetune(directory, "--as-it-is", f"task.data={other}", f"results_dir={tmp_path}/new", *TEXT) == 2
    assert "got ids of test, expected bytes's" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_text_of_another_tokenizer_than_that_of_a_foreign_folder_is_refused(
    mamba2, finetune, write_text, tmp_path, capsys
):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="a")).save(str(mamba2 / "tokenizer.json"))
    command = (mamba2, "task=commonsense", f"task.data={write_text(tmp_path / 'text')}", f"results_dir={tmp_path}/out")
    assert finetune(*command, *TEXT) == 2
    assert "does not fit" in capsys.readouterr().err
    assert not (tmp_path / "out/runs").exists()


def test_text_of_more_ids_than_the_model_has_is_refused(mamba2, finetune, tmp_path, capsys):
    from palimpsa.text.command import prepare_text_main

    novel = tmp_path / "novel"
    assert prepare_text_main(["source=sample", "tokenizer=bytes", f"directory={novel}"]) == 0
    assert finetune(mamba2, "task=commonsense", f"task.data={novel}", f"results_dir={tmp_path}/out", *TEXT) == 2
    error = capsys.readouterr().err
    assert "got 257 ids of bytes, expected at most the model's 32" in error
    assert not (tmp_path / "out/runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("NOWHERE",), "SOURCE: got 'NOWHERE', which is not there"),
        (
            ("PALIMPSA", "--convert", "--form scalar"),
            "--convert: got '--form scalar' with a source",
        ),
        (("PALIMPSA", "--as-it-is", "--convert", "x"), "--convert: got 'x' with --as-it-is"),
        (
            ("MAMBA2", "--convert", "--form 'scalar"),
            '--convert: got "--form \'scalar" (No closing quotation), expected',
        ),
        (("MAMBA2", "--convert", "--form round"), "--form: got 'round', expected"),
        (
            ("MAMBA2", "--convert", "more"),
            "--convert: got 'more' (unrecognized arguments: more), expected options of scripts/convert.py metaplastic",
        ),
        (("MAMBA2", "--convert", "--strength much"), "--convert: got '--strength much' (argument --strength: invalid"),
        (
            ("MAMBA2", "task=commonsense", "task.data=NOWHERE"),
            "task.data: got 'NOWHERE', expected a folder that scripts/prepare_text.py wrote",
        ),
        (("PALIMPSA", "optimizer.freeze=[nothing]"), "optimizer.freeze: got 'nothing', which no parameter has"),
        (("PALIMPSA", "optimizer.new_rl=1"), "optimizer.new_rl"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, words, finetune, trained, tmp_path, capsys):
    source, *others = arguments
    models = {"PALIMPSA": "palimpsa_d", "MAMBA2": "mamba2"}
    place = trained(models[source]) if source in models else source
    capsys.readouterr()
    assert finetune(place, *others, f"results_dir={tmp_path}/out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("out/converted/*"))
    assert not (tmp_path / "out/runs").exists()


def test_the_usage_is_told_once(finetune, capsys):
    assert finetune() == 2
    assert capsys.readouterr().err.count("usage:") == 1
    assert finetune("-h") == 0
    assert capsys.readouterr().out.startswith("usage: finetune.py SOURCE")
