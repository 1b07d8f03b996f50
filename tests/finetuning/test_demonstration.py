"""Both demonstrations at toy sizes: trained, converted, trained on in pairs, measured, compared; and gone on with."""

import json
import shutil

import pandas as pd
import pytest

from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.errors import ConfigError


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def demonstrate(*arguments: str) -> int:
    from palimpsa.finetuning.demonstrate_command import demonstrate_main

    return demonstrate_main(arguments)


def listed(*overrides: str) -> str:
    """As a list of words on a command line."""
    return f"[{','.join(f'{chr(39)}{one}{chr(39)}' for one in overrides)}]"


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "demonstration").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_demonstration_plans_its_first_trainings(path, write_text, tmp_path, monkeypatch):
    from palimpsa.finetuning.demonstration import plan_sources
    from palimpsa.finetuning.schema import load

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    is_text = path.stem.startswith("language")
    data = [f"task.data={write_text(tmp_path / 'text', num_documents=400)}"] if is_text else []
    config = load([path.stem, f"results_dir={tmp_path}", *data])
    assert config.demonstration.name == path.stem
    sweep, sources = plan_sources(config)
    assert len(sweep.jobs) == len(sources) == len(config.demonstration.models) * len(config.demonstration.seeds)
    assert not any(job.config["model"]["mixer"]["metaplastic"] for job in sweep.jobs)


def test_the_paper_sized_recall_is_what_was_promised(tmp_path, monkeypatch):
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed
    from palimpsa.finetuning.schema import load

    plan = load(["recall", f"results_dir={tmp_path}"]).demonstration
    stages = [typed(compose_config([*plan.common, *lines])).task.stages for lines in (plan.source, plan.further)]
    assert [(one.seq_len, one.max_steps) for one in stages[0]][-1] == (512, 3_000)
    assert [(one.seq_len, one.max_steps) for one in stages[1]] == [(512, 1_500), (1_024, 2_000)]
    assert len(plan.seeds) == 4
    language = load(["language", f"results_dir={tmp_path}"]).demonstration
    steps = [typed(compose_config([*language.common, *lines])).task for lines in (language.source, language.further)]
    assert [(one.num_steps, one.num_tokens, one.tokens_per_step) for one in steps] == [
        (400, None, 131_072),
        (200, None, 131_072),
    ]
    assert len(language.seeds) == 3


def test_recall_is_demonstrated_in_pairs_and_goes_on_from_what_there_is(tmp_path, capsys):
    folder = tmp_path / "out"
    stages = "task.stages=[{seq_len:8,num_pairs:2,max_steps:10,in_figure:false},{seq_len:16,num_pairs:4,max_steps:10}]"
    further = "task.stages=[{seq_len:16,num_pairs:4,max_steps:8},{seq_len:32,num_pairs:8,max_steps:8}]"
    command = (
        *("recall_small", f"results_dir={folder}", "demonstration.models=[mamba2]"),
        "demonstration.source=" + listed("task.name=recall_source", "task.directory=recall_source", stages),
        "demonstration.further=" + listed("task.name=recall_further", "task.directory=recall_further", further),
        *("task.stop_accuracy=2", "trainer.log_every=20", "trainer.progress_bar=false"),
    )
    assert demonstrate(*command) == 0
    rows = pd.read_csv(folder / "demonstration/pairs.csv")
    counts = rows.groupby(["model", "arm", "at"])["seed"].nunique()
    assert counts["mamba2"].to_dict() == {
        **{("source", 16): 2, ("continued", 16): 2, ("continued", 32): 2},
        **{("converted", 16): 2, ("converted", 32): 2},
    }
    # Both arms of a pair take the same steps from the same weights, and draw the same batches.
    assert set(rows.loc[rows["arm"] != "source", "steps"]) == {16}
    runs = [json.loads(path.read_text()) for path in folder.glob("runs/recall_further/*/*/*/*/config.json")]
    assert len(runs) == 4
    assert {one["seed"] for one in runs} == {101, 102}
    text = (folder / "demonstration/finetuning.md").read_text()
    assert "| Mamba-2 (M w/o Meta) | accuracy, %, by tokens | 32 | 2 |" in text
    assert (folder / "demonstration/pairs_recall_small.png").stat().st_size > 10_000
    # On another machine, to which what is finished has come without weights: of one pair all, of the other a source.
    capsys.readouterr()
    for place in (*folder.glob("converted/seed_1_*"), *folder.glob("runs/*/*/*/*/seed_1*/checkpoints")):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    (lost,) = folder.glob("runs/recall_further/*/mamba2_metaplastic*_converted/*/seed_102")
    expected = json.loads((lost / "result.json").read_text())
    shutil.rmtree(lost)
    assert demonstrate(*command) == 0
    assert "[1/1] " in capsys.readouterr().out
    again = json.loads((lost / "result.json").read_text())
    assert (again["stages"], again["config_hash"]) == (expected["stages"], expected["config_hash"])
    kept = ["model", "seed", "arm", "measure", "at", "value", "config_hash"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "demonstration/pairs.csv")[kept], rows[kept])
    # With nothing left to do the file stays as it is, dates and all.
    before = (folder / "demonstration/pairs.csv").read_bytes()
    assert before.decode().count(json.loads((lost / "result.json").read_text())["provenance"]["started"]) >= 1
    # Nor are weights missed that a copy has left out.
    for file in folder.glob("converted/*/*.safetensors"):
        file.unlink()
    assert demonstrate(*command) == 0
    assert (folder / "demonstration/pairs.csv").read_bytes() == before
    # What was converted by other options is no run of this demonstration.
    assert demonstrate(*command, "demonstration.convert='--strength 1e-3 --form scalar'") == 2
    assert "demonstration.convert: got '--strength 1e-3 --form scalar', expected the" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_csv(folder / "demonstration/pairs.csv")[kept], rows[kept])


def test_language_is_demonstrated_with_perplexity_positions_and_recall(tmp_path):
    from palimpsa.text.command import prepare_text_main

    novel = tmp_path / "novel"
    assert prepare_text_main(["source=sample", "tokenizer=bytes", "validation_every=8", f"directory={novel}"]) == 0
    small = (
        "trainer.progress_bar=false",
        "model.d_model=32",
        "model.num_layers=1",
        "task.context=64",
        "task.tokens_per_step=256",
    )
    command = (
        *("language_small", f"results_dir={tmp_path}/out", "demonstration.models=[lm/mamba2_tiny]"),
        *(
            f"task.data={novel}",
            "task.verify=sizes",
            "task.validation_tokens=1000",
            "trainer.progress_bar=false",
            *small,
        ),
        "demonstration.source=" + listed("task.directory=first", "task.num_steps=4"),
        "demonstration.further=" + listed("task.directory=second", "task.num_steps=2"),
        "demonstration.evaluation="
        + listed(
            "long_range.measures=[loss_by_position,rare_bigrams,repeat_copy]",
            *(
                "long_range.max_count=1000",
                "long_range.num_tokens=64",
                "long_range.max_documents=4",
                "long_range.num_books=2",
            ),
            "long_range.copy_lengths=[8]",
        ),
    )
    assert demonstrate(*command) == 0
    folder = tmp_path / "out/demonstration"
    rows = pd.read_csv(folder / "pairs.csv")
    wanted = {"validation_loss", "validation_perplexity", "validation_loss_by_position"}
    wanted |= {"loss_by_position", "rare_bigrams", "repeat_copy"}
    for _, own in rows.groupby(["seed", "arm"]):
        assert set(own["measure"]) == wanted
    documents = pd.read_csv(folder / "documents.csv")
    # The novel's validation split has three.
    assert len(documents) == 3 * 2 * 3
    assert "nats a token, 95% over seeds and documents" in (folder / "finetuning.md").read_text()
    # What was measured is measured once.
    measured = sorted((tmp_path / "out/runs").rglob("long_range.json"))
    assert len(measured) == 6
    before = [path.stat().st_mtime_ns for path in measured]
    assert demonstrate(*command) == 0
    assert [path.stat().st_mtime_ns for path in measured] == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("demonstration.seeds=[1,1]", r"demonstration\.seeds: got \[1, 1\], expected at least one, each once"),
        ("demonstration.seeds=[-1]", r"demonstration\.seeds: got -1, expected 0 to"),
        ("demonstration.models=[]", r"demonstration\.models: got \[\]"),
        ("demonstration.sedes=[1]", "sedes"),
        ("demonstration.convert='--form'", r"demonstration\.convert: got '--form' \(argument --form: expected one"),
        ("recal", "recal"),
        ("task.data=x", "demonstration: got none, expected a file of configs/demonstration"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(override, words, tmp_path):
    from palimpsa.finetuning.schema import load

    with pytest.raises(ConfigError, match=words):
        load([override, f"results_dir={tmp_path}/out", *(["recall"] if override.startswith("demonstration.") else [])])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["palimpsa_m", "gla"])
def test_a_model_that_cannot_be_converted_is_refused_before_it_is_trained(model, tmp_path, capsys):
    command = ("recall_small", f"++results_dir={tmp_path}/out", f"demonstration.models=[mamba2,{model}]")
    assert demonstrate(*command) == 2
    assert f"demonstration.models: got '{model}', expected Palimpsa-D or" in capsys.readouterr().err
    assert not (tmp_path / "out/runs").exists()
