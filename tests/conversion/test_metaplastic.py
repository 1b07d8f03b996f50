"""A model without metaplasticity becomes one with it: the same function at first, every tensor accounted for."""

from __future__ import annotations

import json
import os
import pickle
import resource
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

TEXT = Path(__file__).resolve().parents[2] / "src/palimpsa/text/sample/persuasion.txt"
NO_LIMIT = (0.0, float("inf"))
SIZES = {
    **{"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8},
    **{"expand": 2, "n_groups": 1, "chunk_size": 64, "layer_norm_epsilon": 1e-5, "eos_token_id": 256},
    **{"use_conv_bias": True, "use_bias": False, "time_step_limit": NO_LIMIT, "tie_word_embeddings": True},
}
SOURCES = {
    "G1-tied": {},
    "G8-biases-untied": {"n_groups": 8, "use_bias": True, "tie_word_embeddings": False},
    "G1-dt0.01to0.2-no_conv_bias": {"time_step_limit": (0.01, 0.2), "use_conv_bias": False},
    "G2-dt0.001-deep-untied": {
        **{"n_groups": 2, "num_hidden_layers": 4, "time_step_limit": (0.001, float("inf"))},
        **{"tie_word_embeddings": False, "head_dim": 32, "hidden_size": 64, "num_heads": 4, "state_size": 32},
    },
}
FORMS = {"vector": (), "grouped": ("--num-precisions", "2"), "scalar": ()}


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def convert(*arguments: object) -> int:
    from palimpsa.conversion.command import convert_main

    return convert_main([str(one) for one in arguments])


def metaplastic(source: Path, folder: Path, *options: str):
    """The converted model of a folder."""
    from transformers import AutoModelForCausalLM

    # For what it registers.
    import palimpsa.model.hf  # noqa: F401

    assert convert("metaplastic", source, folder, *options) == 0
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def error(found, expected) -> float:
    """Largest difference, relative to the largest number."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def root_error(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def tokens():
    """[1, 4096] bytes of the shipped novel."""
    return torch.tensor(list(TEXT.read_bytes()[5_000:9_096]))[None]


def draw_source(folder: Path, changes: dict) -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        library = Mamba2ForCausalLM(Mamba2Config(**{**SIZES, **changes})).eval()
        for name, weight in library.named_parameters():
            # What starts at zero or one, so that each counts.
            if weight.ndim == 1 and not name.endswith(("dt_bias", "A_log")):
                weight.add_(0.1 * torch.randn_like(weight))
    library.save_pretrained(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder that transformers wrote, of weights that it drew: `source("G1-tied")`."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("source") / "mamba2-small"
            draw_source(made[name], SOURCES[name])
        return made[name]

    return write


@pytest.fixture(scope="module")
def expected(source, tokens):
    """transformers' own logits of the text, of its prefill: `expected("G1-tied", torch.bfloat16)`."""
    from transformers import Mamba2ForCausalLM

    made: dict = {}

    @torch.no_grad()
    def logits(name: str, dtype: torch.dtype = torch.float32):
        if (name, dtype) not in made:
            library = Mamba2ForCausalLM.from_pretrained(source(name), dtype=dtype).eval()
            made[name, dtype] = library(tokens, use_cache=False).logits.float()
        return made[name, dtype]

    return logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_logits_of_text_are_those_of_transformers(name, form, source, expected, tokens, tmp_path):
    from palimpsa.mixers.plasticity import set_strength

    model = metaplastic(source(name), tmp_path / "new", "--form", form, *FORMS[form])
    logits = model(tokens, use_cache=False).logits
    assert expected(name).std() > 0.1
    assert 1e-7 < error(logits, expected(name)) < 1e-3
    set_strength(model, 0.0)
    assert error(model(tokens, use_cache=False).logits, expected(name)) < 1e-5


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_the_source_itself_is(name, source, expected, tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    metaplastic(source(name), tmp_path / "new")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.bfloat16).eval()
    logits = model(tokens, use_cache=False).logits.float()
    own = root_error(expected(name, torch.bfloat16), expected(name))
    assert own < 2e-2
    assert root_error(logits, expected(name)) <= 2 * own


@pytest.mark.parametrize("name", SOURCES)
def test_decoding_is_prefill_and_the_new_parameters_learn(name, source, tokens, tmp_path):
    model, tokens = metaplastic(source(name), tmp_path / "new", "--strength", "0.5"), tokens[:, :40]
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        first = model(tokens[:, :30])
        steps = [first.logits]
        for t in range(30, 40):
            steps.append(model(tokens[:, t : t + 1], past_key_values=first.past_key_values).logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-4)
    assert convert("metaplastic", source(name), tmp_path / "default") == 0
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "default")
    model(tokens, labels=tokens).loss.backward()
    new = {name: weight.grad for name, weight in model.named_parameters() if ".plasticity." in name}
    assert len(new) == 3 * model.config.num_layers
    assert all(gradient is not None and gradient.abs().max() > 1e-12 for gradient in new.values())


def test_every_tensor_is_in_the_report_and_the_folder_says_where_it_came_from(source, tmp_path, capsys):
    origin = source("G8-biases-untied")
    (origin / "tokenizer.json").write_text("{}")
    model = metaplastic(origin, tmp_path / "new", "--form", "scalar", "--label", "Mine | it")
    printed = capsys.readouterr().out
    before = load_file(origin / "model.safetensors")
    for name in before:
        assert f"copied  {name} -> model." in printed
    weights = load_file(tmp_path / "new/model.safetensors")
    created = [name for name in weights if ".plasticity." in name or name.endswith("importance_prior")]
    assert len(created) == 2 * 4
    assert all(f"created {name}  float32" in printed for name in created)
    assert f"{len(before)} tensors copied, {len(created)} created, 0 dropped" in printed
    # Bit for bit.
    copied = {name: weight for name, weight in weights.items() if name not in created}
    assert sum(x.numel() for x in copied.values()) == sum(x.numel() for x in before.values())
    assert torch.equal(
        weights["model.blocks.1.mixer.conv.weight"][:, None], before["backbone.layers.1.mixer.conv1d.weight"]
    )
    assert torch.equal(weights["model.head.weight"], before["lm_head.weight"])
    # Parameters, and the state: K H more numbers for one precision a head.
    assert f"of which {sum(weights[x].numel() for x in created if 'plasticity' in x):,} are new" in printed
    assert "state of a sequence in a layer: 576 numbers, where it was 512" in printed
    assert "output norm: over each of 8 groups" in printed
    assert "tokenizer: copied tokenizer.json" in printed
    assert (tmp_path / "new/tokenizer.json").read_text() == "{}"
    assert (model.config.name, model.config.eos_token_id) == ("mamba2-small_metaplastic", 256)
    assert model.config.mixer["num_norm_groups"] == 8
    card = (tmp_path / "new/README.md").read_text()
    assert "parameters, converted by the repository" in card
    assert "| converted from | mamba2-small |" in card
    assert "| precisions | scalar |" in card
    assert "not known" not in card
    assert "# Mine | it" not in card
    assert str(origin) not in card + (tmp_path / "new/training.json").read_text()


def test_pickles_shards_and_the_layout_of_state_spaces_are_the_same_model(source, tmp_path, capsys):
    origin = source("G1-tied")
    weights, config = load_file(origin / "model.safetensors"), json.loads((origin / "config.json").read_text())
    assert convert("metaplastic", origin, tmp_path / "new") == 0
    expected = (tmp_path / "new/model.safetensors").read_bytes()

    pickled, shards, theirs = tmp_path / "pickled", tmp_path / "shards", tmp_path / "theirs"
    for folder in (pickled, shards, theirs):
        folder.mkdir()
    (pickled / "config.json").write_text(json.dumps(config))
    torch.save({**weights, "lm_head.weight": weights["backbone.embeddings.weight"]}, pickled / "pytorch_model.bin")
    capsys.readouterr()
    assert convert("metaplastic", pickled, tmp_path / "new_pickled") == 0
    printed = capsys.readouterr().out
    assert "pytorch_model.bin: read by torch.load(weights_only=True)" in printed
    assert "dropped lm_head.weight: backbone.embeddings.weight itself" in printed

    (shards / "config.json").write_text(json.dumps(config))
    names = list(weights)
    parts = {"model-1-of-2.safetensors": names[:5], "model-2-of-2.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, shards / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert convert("metaplastic", shards, tmp_path / "new_shards") == 0

    ssm = {"layer": "Mamba2", "d_state": 8, "headdim": 8}
    sizes = {"d_model": 32, "n_layer": 2, "vocab_size": 257, "pad_vocab_size_multiple": 1}
    (theirs / "config.json").write_text(json.dumps({**sizes, "ssm_cfg": ssm, "rms_norm": True, "tie_embeddings": True}))
    renamed = {name.replace("embeddings", "embedding"): weight for name, weight in weights.items()}
    torch.save(renamed, theirs / "pytorch_model.bin")
    assert convert("metaplastic", theirs, tmp_path / "new_theirs") == 0
    assert "tokenizer: none there" in capsys.readouterr().out
    for folder in ("new_pickled", "new_shards", "new_theirs"):
        assert (tmp_path / folder / "model.safetensors").read_bytes() == expected
    # As transformers before 5 wrote it, and Python writes it of a config of state-spaces'.
    unlimited = {"time_step_limit": [0.0, float("inf")]}, {"ssm_cfg": {**ssm, "dt_limit": [0.0, float("inf")]}}
    for folder, changes in zip((pickled, theirs), unlimited, strict=True):
        with_config(folder, **changes)
        assert "Infinity]" in (folder / "config.json").read_text()
        assert convert("metaplastic", folder, tmp_path / f"new_{folder.name}_bare") == 0, capsys.readouterr().err
        assert (tmp_path / f"new_{folder.name}_bare/model.safetensors").read_bytes() == expected
        assert (
            json.loads((tmp_path / f"new_{folder.name}_bare/config.json").read_text())["mixer"]["step_size_limit"]
            is None
        )
    # A padded vocabulary has more rows than words.
    (theirs / "config.json").write_text(json.dumps({**sizes, "ssm_cfg": ssm, "pad_vocab_size_multiple": 16}))
    assert convert("metaplastic", theirs, tmp_path / "padded") == 2
    assert "backbone.embedding.weight: got shape [257, 32], expected [272, 32]" in capsys.readouterr().err


@torch.no_grad()
def test_half_precision_becomes_fp32_and_other_norm_groups_are_taken_at_their_word(source, tmp_path, tokens, capsys):
    origin, half = source("G2-dt0.001-deep-untied"), tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((origin / "config.json").read_text())
    weights = load_file(origin / "model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, half / "model.safetensors")
    model = metaplastic(half, tmp_path / "new")
    assert "weights: torch.bfloat16 there, torch.float32 here" in capsys.readouterr().out
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.model.embedding.weight, weights["backbone.embeddings.weight"].bfloat16().float())
    other = metaplastic(origin, tmp_path / "other", "--norm-groups", "1")
    assert other.model.blocks[0].mixer.o_norm.num_groups == 1
    short = tokens[:, :64]
    assert error(other(short).logits, metaplastic(origin, tmp_path / "own")(short).logits) > 1e-3


OWN_SIZES = ("model.d_model=32", "model.num_layers=2", "model.mixer.num_heads=2")


@pytest.mark.parametrize("name", ["palimpsa_d_nometa_tiny", "mamba2_tiny"])
@torch.no_grad()
def test_our_models_without_metaplasticity_are_converted_from_runs_and_folders(name, tokens, tmp_path, capsys):
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import plain, typed
    from palimpsa.conversion.checkpoint import write_weights
    from palimpsa.mixers.plasticity import set_strength
    from palimpsa.model.build import build_model

    config = typed(compose_config([f"model=lm/{name}", "task=commonsense", *OWN_SIZES]))
    network = build_model(config.model, 3).eval()
    run = tmp_path / "run"
    write_weights(run / "checkpoints/last.ckpt", network.state_dict(), plain(config)["model"], 70)
    (run / "config.json").write_text(json.dumps(plain(config)))
    model = metaplastic(run, tmp_path / "new", "--form", "grouped", "--num-precisions", "2")
    assert model.config.name == f"{name}_metaplastic"
    logits, expected = model(tokens).logits, network(tokens)
    assert 1e-7 < error(logits, expected) < 1e-3
    set_strength(model, 0.0)
    assert error(model(tokens).logits, expected) < 1e-5
    assert json.loads((tmp_path / "new/training.json").read_text())["steps"] == 70
    assert "| optimiser steps, of the source | 70 |" in (tmp_path / "new/README.md").read_text()
    # From the exported folder, and from the checkpoint's file, the same.
    assert convert("export", run, tmp_path / "exported") == 0
    for source in (tmp_path / "exported", run / "checkpoints/last.ckpt"):
        again = metaplastic(source, tmp_path / f"of_{source.name}", "--form", "grouped", "--num-precisions", "2")
        assert all(torch.equal(weight, model.state_dict()[key]) for key, weight in again.state_dict().items())
    # What is metaplastic already, and what comes back as a checkpoint.
    capsys.readouterr()
    assert convert("metaplastic", tmp_path / "new", tmp_path / "twice") == 2
    assert "mixer.metaplastic: got True, expected False: it is metaplastic already" in capsys.readouterr().err
    assert convert("import", tmp_path / "new", tmp_path / "back.ckpt") == 0


@torch.no_grad()
@pytest.mark.parametrize(("form", "G"), [("vector", None), ("grouped", 4), ("scalar", None)])
def test_it_costs_what_the_page_says(form, G):
    """Of the shape of Mamba-2's 130M, by its row of the table in docs/finetuning.md."""
    from palimpsa.conversion.mamba2 import _model_config
    from palimpsa.conversion.mamba2_options import Mamba2Options
    from palimpsa.conversion.metaplastic import Conversion, metaplastic_config
    from palimpsa.model.build import build_skeleton

    sizes = {"vocab_size": 50288, "d_model": 768, "num_layers": 24, "num_heads": 24, "head_width": 64}
    sizes |= {"state_size": 128, "num_groups": 1, "conv_width": 4, "conv_bias": True, "projection_bias": False}
    options = Mamba2Options(**sizes, time_step_limit=(0.0, float("inf")), eps=1e-5, is_tied=True)
    source = _model_config("mamba2", options, None)
    own = metaplastic_config(source, Conversion(form=form, num_precisions=G))
    with torch.device("meta"):
        models = [build_skeleton(config) for config in (source, own)]
    before, after = (model.num_parameters for model in models)
    old, new = (next(model.mixers()).state_size for model in models)
    grown = "twice the source's" if new == 2 * old else f"{100 * (new / old - 1):.2g}% more"
    row = f"{(after - before) / 1e6:.2f}M, {100 * (after / before - 1):.1f}% | {new:,}, {grown} |"
    assert row in (Path(__file__).resolve().parents[2] / "docs/finetuning.md").read_text()


@pytest.mark.parametrize("name", SOURCES)
def test_without_precisions_it_is_the_control_in_our_layout(name, source, expected, tokens, tmp_path):
    model = metaplastic(source(name), tmp_path / "new", "--form", "none")
    assert (model.config.name, model.config.mixer["metaplastic"]) == ("mamba2-small", False)
    assert not [key for key in model.state_dict() if "plasticity" in key]
    assert error(model(tokens).logits, expected(name)) < 1e-4


def test_without_the_new_tensors_it_is_the_source_again(source, tokens, tmp_path):
    """How docs/finetuning.md undoes a conversion."""
    from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM

    model, short = metaplastic(source("G1-tied"), tmp_path / "new", "--strength", "1"), tokens[:, :64]
    mixer = {**model.config.mixer, "metaplastic": False, "plasticity": "vector", "num_precisions": None}
    undone = PalimpsaForCausalLM(PalimpsaConfig.of_model({**model.config.to_dict(), "mixer": mixer})).eval()
    kept = {name: weight for name, weight in model.state_dict().items() if ".plasticity." not in name}
    undone.load_state_dict(kept)
    from transformers import Mamba2ForCausalLM

    library = Mamba2ForCausalLM.from_pretrained(source("G1-tied")).eval()
    assert error(undone(short).logits, library(short).logits) < 1e-5
    assert error(model(short).logits, library(short).logits) > 1e-3


@torch.no_grad()
def test_the_strength_is_the_largest_that_a_model_takes(tmp_path, tokens, capsys):
    """Of two that differ in the size of their weights alone: an orderly one, and one that amplifies what there is."""
    from palimpsa.conversion.initial_scales import LogitsCheck, choose_strength, set_initial_scales

    chosen = {}
    for spread in (0.02, 0.3):
        source, new = tmp_path / f"source{spread}", tmp_path / f"new{spread}"
        draw_source(source, {"initializer_range": spread, "num_hidden_layers": 4})
        model = metaplastic(source, new)
        chosen[spread] = json.loads((new / "training.json").read_text())["converted_from"]["strength_at_conversion"]
        assert f"strength: {chosen[spread]:g}; logits on 512 random tokens within" in capsys.readouterr().out
        check = LogitsCheck(model.model)
        scale = model.model.blocks[0].mixer.plasticity.scale.clone()
        assert check.difference() < 3e-5
        assert choose_strength(model.model, check) == chosen[spread]
        # In proportion, and so the next power would be too large.
        set_initial_scales(model.model, chosen[spread])
        torch.testing.assert_close(model.model.blocks[0].mixer.plasticity.scale, scale)
        set_initial_scales(model.model, 10 * chosen[spread])
        assert chosen[spread] == 1e-3 or check.difference() > 3e-5
    assert chosen[0.02] == 1e-3
    assert chosen[0.3] < 1e-4


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_at_strength_one_windows_add_up_to_the_prior_in_order_of_magnitude(name, source, tokens, tmp_path):
    model = metaplastic(source(name), tmp_path / "new", "--strength", "1")
    for trace in model.model.memory(tokens[:, :1024]):
        assert 0.02 < (trace.importance - 1).mean() < 2
        assert (trace.importance > 1 - 1e-5).all()


def with_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def with_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def with_pickle(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


SHARD = "model-1.safetensors"


def with_index(folder: Path, changes: dict) -> None:
    """One shard, and an index that differs from it; None: says nothing of a tensor."""
    names = dict.fromkeys(load_file(folder / "model.safetensors"), SHARD) | changes
    (folder / "model.safetensors").rename(folder / SHARD)
    places = {name: file for name, file in names.items() if file}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


FIRST = "backbone.layers.0.mixer."
WRONG = {
    "another architecture": (lambda f: with_config(f, model_type="mamba"), "got a model of type 'mamba', expected"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "got a model of type None, expected"),
    "no config": (lambda f: (f / "config.json").unlink(), "got no config.json in it"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "got no weights in it, expected one of"),
    "a headless model": (lambda f: with_config(f, architectures=["Mamba2Model"]), "architectures: got ['Mamba2Model']"),
    "activation": (lambda f: with_config(f, hidden_act="gelu"), "hidden_act: got 'gelu', expected 'silu'"),
    "norm_before_gate": (lambda f: with_config(f, norm_before_gate=True), "norm_before_gate: got True, expected False"),
    "rms_norm": (lambda f: with_config(f, rms_norm=False), "rms_norm: got False, expected True"),
    "rmsnorm": (lambda f: with_config(f, rmsnorm=False), "rmsnorm: got False, expected True"),
    "D_has_hdim": (lambda f: with_config(f, D_has_hdim=True), "D_has_hdim: got True, expected False"),
    "d_ssm": (lambda f: with_config(f, d_ssm=16), "d_ssm: got 16, expected None"),
    "attention layers": (lambda f: with_config(f, attn_layer_idx=[1]), "attn_layer_idx: got [1], expected []"),
    "MLPs": (lambda f: with_config(f, d_intermediate=64), "d_intermediate: got 64, expected 0"),
    "quantised": (lambda f: with_config(f, quantization_config={"bits": 4}), "quantization_config: got {'bits': 4}"),
    "sizes": (lambda f: with_config(f, num_heads=5), "got no config of Mamba-2"),
    "missing": (
        lambda f: with_weights(f, lambda w: [w.pop(f"{FIRST}D"), w.pop(f"{FIRST}A_log")]),
        "got no backbone.layers.0.mixer.A_log among its weights, and 1 more missing",
    ),
    "extra": (
        lambda f: with_weights(f, lambda w: w.update({"backbone.layers.0.mlp.fc1.weight": torch.ones(2)})),
        "got backbone.layers.0.mlp.fc1.weight among its weights, and 0 more, which",
    ),
    "D per channel": (
        lambda f: with_weights(f, lambda w: w.update({f"{FIRST}D": torch.ones(64)})),
        "backbone.layers.0.mixer.D: got shape [64], expected [8]",
    ),
    "mixed dtypes": (
        lambda f: with_weights(f, lambda w: w.update({f"{FIRST}D": w[f"{FIRST}D"].half()})),
        "expected one dtype in all",
    ),
    "integers": (
        lambda f: with_weights(f, lambda w: w.update({f"{FIRST}D": w[f"{FIRST}D"].to(torch.int8)})),
        "got torch.int8, expected floating-point numbers",
    ),
    "8 bits": (
        lambda f: with_weights(f, lambda w: w.update({name: x.to(torch.float8_e4m3fn) for name, x in w.items()})),
        "got torch.float8_e4m3fn, expected floating-point numbers of 16 bits or more",
    ),
    "another head": (
        lambda f: with_weights(f, lambda w: w.update({"lm_head.weight": w["backbone.embeddings.weight"] + 1})),
        "got lm_head.weight other than backbone.embeddings.weight, to which its config.json ties it",
    ),
    "no numbers": (
        lambda f: with_weights(f, lambda w: w[f"{FIRST}D"].fill_(float("nan"))),
        "got blocks.0.mixer.skip with 8 of its 8 numbers NaN or infinite, expected finite weights",
    ),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"nothing"), "cannot be read"),
    "code": (
        lambda f: with_pickle(f, {"a": Planted()}),
        "takes tensors and runs no code (Trying to load unsupported GLOBAL posix.mkdir)",
    ),
    "code of no archive": (
        lambda f: [
            (f / "model.safetensors").unlink(),
            (f / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Planted()}, protocol=4)),
        ],
        "refused by torch.load(weights_only=True), which takes tensors and runs no code (Unsupported operand 149)",
    ),
    "a pickle cut short": (
        lambda f: [
            with_pickle(f, {"a": torch.ones(1000)}),
            (f / "pytorch_model.bin").write_bytes((f / "pytorch_model.bin").read_bytes()[:2000]),
        ],
        "runs no code (PytorchStreamReader failed",
    ),
    "an empty pickle": (
        lambda f: [with_pickle(f, {}), (f / "pytorch_model.bin").write_bytes(b"")],
        "runs no code (EOFError)",
    ),
    "no list": (lambda f: with_config(f, architectures=5), "architectures: got 5, expected ['Mamba2ForCausalLM']"),
    "a word": (
        lambda f: with_config(f, architectures="Mamba2ForCausalLM"),
        "architectures: got 'Mamba2ForCausalLM', expected ['Mamba2ForCausalLM']",
    ),
    "layers without number": (
        lambda f: with_config(f, num_hidden_layers=10_000_000),
        "got weights of 1 layers, expected 10000000, as its config.json says",
    ),
    "an index that says more": (lambda f: with_index(f, {"b": SHARD}), f"{SHARD}: has no b, expected the tensors that"),
    "an index that says less": (
        lambda f: with_index(f, {"backbone.norm_f.weight": None}),
        f"{SHARD}: has backbone.norm_f.weight, expected the tensors that model.safetensors.index.json says",
    ),
    "no tensors": (lambda f: with_pickle(f, {"a": [1]}), "expected tensors by their names"),
    "sparse tensors": (
        lambda f: with_pickle(f, {"a": torch.eye(2).to_sparse()}),
        "a: got a tensor of torch.sparse_coo, expected dense ones with values",
    ),
    "no values": (
        lambda f: with_pickle(f, {"a": torch.ones(2, device="meta")}),
        "a: got a tensor of no values, expected dense ones with values",
    ),
    "Megatron": (lambda f: (f / "latest_checkpointed_iteration.txt").touch(), "a checkpoint of Megatron's"),
    "a shard outside": (
        lambda f: [
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        ],
        "got '../x.safetensors', expected a .safetensors file beside it",
    ),
    "a missing shard": (
        lambda f: [
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}'),
        ],
        "got 'x.safetensors', which is not there",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_source_is_one_line_and_nothing_is_written(what, tmp_path, monkeypatch, capsys):
    folder, (damage, told) = tmp_path / "source", WRONG[what]
    monkeypatch.chdir(tmp_path)
    draw_source(folder, {"num_hidden_layers": 1})
    damage(folder)
    with warnings.catch_warnings():
        # One would be told beside the error.
        warnings.simplefilter("error")
        assert is_refused(folder, told, capsys, tmp_path)


def is_refused(folder: Path, told: str, capsys, below: Path, *options: str) -> bool:
    before, new = set(os.listdir(below)), below / "new"
    capsys.readouterr()
    assert convert("metaplastic", folder, new, *options) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert told in line
    return set(os.listdir(below)) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ssm_cfg": {}}, "ssm_cfg.layer: got 'Mamba1', expected 'Mamba2'"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim: got True, expected False"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg.rmsnorm: got False, expected True"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "ssm_cfg.norm_before_gate: got True, expected"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 16}}, "ssm_cfg.d_ssm: got 16, expected null or all 64 channels"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 48}}, "ssm_cfg.headdim: got 48, expected a divisor of 64"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_stat": 4}}, "ssm_cfg.d_stat: nothing here has such an option"),
        ({"ssm_cfg": {"layer": "Mamba2", "ngroups": 3}}, "num_groups: got 3, expected a divisor of num_heads = 1"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": "8"}}, "ssm_cfg.headdim: got '8', expected a whole number above 0"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 0}}, "ssm_cfg.headdim: got 0, expected a whole number above 0"),
        ({"ssm_cfg": {"layer": "Mamba2", "expand": 1e308}}, "got sizes that make no model"),
        ({"ssm_cfg": {"layer": "Mamba2", "expand": "2"}}, "ssm_cfg.expand: got '2', expected a number above 0"),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": None}}, "ssm_cfg.dt_limit: got None, expected the least and"),
        ({"n_layer": "2"}, "n_layer: got '2', expected a whole number above 0"),
        ({"d_model": None}, "d_model: got None, expected a whole number above 0"),
        ({"tie_embeddings": None}, "tie_embeddings: got None, expected true or false"),
        ({"pad_vocab_size_multiple": "8"}, "pad_vocab_size_multiple: got '8', expected a whole number"),
        ({"ssm_cfg": [1]}, "ssm_cfg: got [1], expected the arguments of a Mamba-2"),
        ({"attn_layer_idx": [3]}, "attn_layer_idx: got [3], expected []"),
        ({"d_intermediate": 128}, "d_intermediate: got 128, expected 0"),
        ({"rms_norm": False}, "rms_norm: got False, expected True"),
        ({"d_modle": 3}, "d_modle: nothing here has such an option; did you mean 'd_model'"),
    ],
)
def test_an_option_of_state_spaces_that_has_no_place_is_refused_by_name(changes, told, tmp_path, capsys):
    folder = tmp_path / "source"
    folder.mkdir()
    sizes = {"d_model": 32, "n_layer": 1, "vocab_size": 257, "ssm_cfg": {"layer": "Mamba2"}}
    (folder / "config.json").write_text(json.dumps({**sizes, **changes}))
    assert is_refused(folder, told, capsys, tmp_path)


def test_wrong_options_another_mixer_a_taken_place_and_a_full_disk_are_one_line(source, tmp_path, monkeypatch, capsys):
    origin, new = source("G1-tied"), tmp_path / "new"
    for options, told in (
        (("--form", "constant"), "--form: got 'constant', expected one of vector, grouped, scalar"),
        (("--form", "grouped"), "--num-precisions: got none with --form grouped, expected a divisor of the 8 rows"),
        (("--form", "none", "--strength", "1"), "--strength: got 1.0 with --form none, expected none"),
        (("--num-precisions", "2"), "--num-precisions: got 2 with --form vector"),
        (
            ("--form", "grouped", "--num-precisions", "3"),
            "--num-precisions: got 3 with --form grouped, expected a divisor",
        ),
        (("--strength", "0"), "--strength: got 0.0, expected above 0 and at most 1"),
        (("--strength", "nan"), "--strength: got nan, expected above 0 and at most 1"),
        (("--seed", str(2**64)), "--seed: got 18446744073709551616, expected 0 to"),
        (("--seed", "-1"), "--seed: got -1, expected 0 to"),
        (("--norm-groups", "5"), "--norm-groups: got 5, expected a divisor of the inner width"),
        (("--norm-groups", "0"), "--norm-groups: got 0, expected a divisor of the inner width"),
        (("--name", "../x"), "--name: got '../x', expected letters"),
        (("--tokenizer", "gone"), "--tokenizer: got 'gone', expected a folder"),
    ):
        assert is_refused(origin, told, capsys, tmp_path, *options), options
    assert is_refused(tmp_path / "gone", "gone: not there, expected a folder of a model", capsys, tmp_path)

    from palimpsa.model.hf import PalimpsaConfig, PalimpsaForCausalLM

    mixer = {"_target_": "palimpsa.mixers.SimpleGLA", "num_heads": 2, "head_k_dim": 4, "head_v_dim": 4}
    gla = PalimpsaConfig(vocab_size=7, d_model=8, num_layers=1, mixer=mixer)
    PalimpsaForCausalLM(gla).save_pretrained(tmp_path / "gla")
    told = "mixer._target_: got 'palimpsa.mixers.SimpleGLA', expected one of palimpsa.mixers.PalimpsaD"
    assert is_refused(tmp_path / "gla", told, capsys, tmp_path)
    assert is_refused(tmp_path / "gla", "--norm-groups: got 1, expected none", capsys, tmp_path, "--norm-groups", "1")

    new.mkdir()
    assert is_refused(origin, "is there already, expected a new folder", capsys, tmp_path)
    new.rmdir()
    before = set(os.listdir(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert convert("metaplastic", origin, new) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in capsys.readouterr().err
    assert set(os.listdir(tmp_path)) == before
