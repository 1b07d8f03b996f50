"""From shipped text to a model that writes: the newcomer's commands, at a size of seconds."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.text.manifest import read_manifest

SMALL = (
    "task=commonsense",
    "model=lm/palimpsa_d_tiny",
    "model.d_model=32",
    "model.num_layers=1",
    "model.channel_width=32",
    "task.context=32",
    "task.tokens_per_step=128",
    "task.num_steps=8",
    "task.validation_every=4",
    "task.validation_tokens=256",
    "trainer.log_every=2",
    "trainer.probe_every=8",
    "trainer.progress_bar=false",
    "logger=csv",
)


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def load_trained(folder):
    from palimpsa.evaluation.trained import load_trained

    return load_trained(folder)


def show_pretraining(folder, **options):
    from palimpsa.evaluation.pretraining import show_pretraining

    return show_pretraining(folder, **options)


@pytest.fixture(scope="module")
def pretrained(start_script, tmp_path_factory) -> tuple[Path, str]:
    """The directory of a run on the shipped text, and what was printed."""
    folder = tmp_path_factory.mktemp("pretrained")
    made = start_script("prepare_text.py", "source=sample", "tokenizer=bytes", f"directory={folder}/data")
    assert made.wait() == 0, made.err
    done = start_script("pretrain.py", *SMALL, f"task.data={folder}/data", f"results_dir={folder}")
    assert done.wait() == 0, done.err
    (result,) = folder.glob("runs/**/result.json")
    return result.parent, done.out


def test_it_ends_with_a_picture_a_perplexity_and_a_sample(pretrained):
    folder, printed = pretrained
    assert "1,024 tokens in 8 steps" in printed
    assert "demonstrates the pipeline" in printed
    assert f"loss curve: {folder}/loss.png" in printed
    assert (folder / "loss.png").stat().st_size > 10_000
    (stage,) = json.loads((folder / "result.json").read_text())["stages"]
    loss, perplexity = map(float, re.findall(r"validation loss ([\d.]+) nats a token, perplexity ([\d.]+)", printed)[0])
    assert loss == pytest.approx(stage["validation_loss"], abs=1e-3)
    assert perplexity == pytest.approx(math.exp(stage["validation_loss"]), abs=1e-2)
    assert re.search(r"a sample: ['\"]She .{100,}", printed, flags=re.DOTALL)


def test_of_a_run_that_diverged_its_reason_is_all_that_is_told(start_script, pretrained, tmp_path):
    config = json.loads((pretrained[0] / "config.json").read_text())
    done = start_script(
        "pretrain.py", *SMALL, f"task.data={config['task']['data']}", f"results_dir={tmp_path}", "optimizer.lr=1e30",
        "trainer.checkpoint_every=1",
    )  # fmt: skip
    assert done.wait() == 1
    (line,) = done.err.splitlines()
    assert re.search(r"diverged, FloatingPointError: .* at step \d+, first in .*: the step is not taken", line)
    assert done.out == ""


def test_the_model_is_the_one_after_the_last_step(pretrained):
    folder, _ = pretrained
    trained = load_trained(folder)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert trained.step == saved["global_step"] == 8
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(weight, saved["state_dict"][f"model.{name}"]), name
    assert not trained.model.training


def test_a_seed_and_a_prompt_say_what_is_shown(pretrained):
    folder, printed = pretrained
    assert show_pretraining(folder) == printed.splitlines()[-len(show_pretraining(folder)) :]
    other = show_pretraining(folder, prompt="Captain Wentworth", seed=1)[-1]
    assert re.match(r"a sample: ['\"]Captain Wentworth", other)


def test_it_becomes_a_folder_that_transformers_loads_and_writes_with(pretrained, tmp_path):
    """As the README and the model card have it, tokenizer and all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from palimpsa.conversion.command import convert_main

    folder, _ = pretrained
    assert convert_main(["export", str(folder), str(tmp_path / "model")]) == 0
    model, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    native = load_trained(folder).model
    prompt = tokenizer("She had been", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**prompt).logits, native(prompt["input_ids"]))
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("She had been")
    (stage,) = json.loads((folder / "result.json").read_text())["stages"]
    card = (tmp_path / "model/README.md").read_text()
    assert f"| validation loss, nats a token | {stage['validation_loss']:.4f} |" in card
    assert "| optimiser steps | 8 |" in card
    assert "| tokens | 1,024 |" in card


def test_what_is_no_trained_run_is_said_in_one_line(pretrained, tmp_path):
    folder, _ = pretrained
    with pytest.raises(RunDirectoryError, match=r"got no config\.json in it, expected a run's directory"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt: not there, expected the last checkpoint of a run"):
        load_trained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"nothing")
    with pytest.raises(RunDirectoryError, match=r"last\.ckpt: cannot be read"):
        load_trained(tmp_path)


@pytest.fixture
def other_facts(pretrained):
    """The run's data with other facts of their tokenizer: `other_facts(name="gone.model")`."""
    data = Path(json.loads((pretrained[0] / "config.json").read_text())["task"]["data"]) / "train"
    before = (data / "manifest.json").read_bytes()

    def change(**changes) -> None:
        manifest = read_manifest(data)
        facts = dataclasses.replace(manifest.tokenizer, **changes)
        changed = dataclasses.replace(manifest, tokenizer=facts).to_json()
        (data / "manifest.json").write_text(changed, encoding="utf-8")

    yield change
    (data / "manifest.json").write_bytes(before)


# Property 14: one tokenizer, one id, held to at evaluation.
def test_nothing_is_sampled_with_a_tokenizer_that_makes_other_ids(pretrained, other_facts):
    other_facts(golden_ids=[[1]] * 20)
    with pytest.raises(
        ConfigError, match=r"tokenizer: of 'Hello world' got the ids \[72, .*\], expected \[1\]: .* bytes"
    ):
        show_pretraining(pretrained[0])


def test_a_sample_that_cannot_be_for_want_of_the_tokenizer_says_so(pretrained, other_facts):
    other_facts(name="gone/tokenizer.model")
    lines = show_pretraining(pretrained[0])
    assert lines[-1].startswith("a sample: none: tokenizer: got 'gone/tokenizer.model', expected a file or folder")
    assert "perplexity" in lines[1]
