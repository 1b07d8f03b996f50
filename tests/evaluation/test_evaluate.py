"""scripts/evaluate.py on a run of seconds: result, rows, table, pictures, and what is said of what cannot be."""

import errno
import json
import math
import os
import re
import shutil

import pandas as pd
import pytest

from palimpsa.config.errors import ConfigError

NAME = "palimpsa_d_tiny_laptop_lr_0.00464_seed_1"


def test_a_result_says_what_was_measured_on_what_and_how(evaluated):
    result = json.loads((evaluated / "evaluations" / NAME / "result.json").read_text())
    assert (result["label"], result["limit"], result["dtype"]) == ("Palimpsa-D tiny", 2, "float32")
    # Those that it was trained with: the context, and the end of the text before.
    assert (result["max_length"], result["prefix_token"]) == (32, 256)
    assert result["trained"] == {"scale": "laptop", "seed": 1, "lr": 0.00464, "steps": 2, "tokens": 256}
    assert len(result["tasks"]) == 9
    for task in result["tasks"].values():
        assert task["num_items"] == 2
        assert all(metric["stderr"] is not None for metric in task["metrics"].values())
    assert set(result["averages"]) == {"average_of_7", "average_of_8"}
    assert {len(one["sha256"]) for one in result["data"].values()} == {64}
    assert set(result["long_range"]["measures"]) == {
        *("loss_by_position", "rare_bigrams", "lambada_target", "phonebook", "repeat_copy")
    }
    lambada = result["tasks"]["lambada_openai"]["metrics"]["perplexity"]["value"]
    (target,) = result["long_range"]["measures"]["lambada_target"]
    assert target["value"] == pytest.approx(-math.log(lambada))
    assert any(note.startswith("hellaswag: process_docs is left out") for note in result["notes"])
    assert result["provenance"]["versions"]["torch"]


def test_a_table_and_pictures_are_made_of_the_rows(evaluated):
    """Of few items, or at laptop scale, they are kept apart."""
    folder = evaluated / "commonsense/demonstration"
    rows = pd.read_csv(folder / "evaluation.csv")
    assert set(rows["name"]) == {NAME}
    assert len(rows.loc[rows["at"] == "all"]) == 9 + 1 + 2 + 1
    text = (folder / "evaluation.md").read_text()
    assert "| Palimpsa-D tiny |" in text
    assert "At most 32 tokens are read before a target (max_length)" in text
    assert "| published: Palimpsa, the best at each task | 760M |" in text
    for name in ("zero_shot.png", "long_range.png"):
        assert (folder / name).stat().st_size > 10_000
    assert not (evaluated / "commonsense/evaluation.csv").exists()


def test_the_same_again_is_the_same_and_one_of_another_name_stands_beside_it(evaluated, task_data, evaluate):
    """Property 13, from the command line: in other batches."""
    path = evaluated / "commonsense/demonstration/evaluation.csv"
    before = pd.read_csv(path)
    more = [f"evaluation.data_dir={task_data}", "evaluation.batch_size=3"]
    assert evaluate(evaluated, *more) == 0
    assert evaluate(evaluated, *more, "name=renamed", "evaluation.tasks=[piqa]", "long_range.measures=[]") == 0
    after = pd.read_csv(path)
    assert list(after["name"]) == [NAME] * len(before) + ["renamed"]
    same = after.iloc[: len(before)].reset_index(drop=True)
    assert list(same["measure"]) == list(before["measure"])
    assert same["value"].to_numpy() == pytest.approx(before["value"].to_numpy(), rel=1e-4, abs=1e-4)
    accuracies = before["metric"].isin(["acc", "acc_norm"])
    assert (same["value"] == before["value"])[accuracies].all()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["evaluation.tasks=[helaswag]"], 2, "got 'helaswag', expected some of wikitext, .*did you mean 'hellaswag'"),
        (["evaluation.taks=[piqa]"], 2, "evaluation.taks: .*did you mean 'evaluation.tasks'|evaluation.taks"),
        (["long_range.measures=[phonebok]"], 2, "got 'phonebok', .*did you mean 'phonebook'"),
        (
            ["long_range.measures=[phonebook,phonebook]"],
            2,
            "measures: got phonebook, phonebook, expected each once",
        ),
        (["long_range.book_sizes=[4,16,4]"], 2, "long_range.book_sizes: got 4, 16, 4, expected each once"),
        (["long_range.book_sizes=[1]"], 2, "long_range.book_sizes: got 1, expected 2 to 441"),
        (["evaluation.limit=0"], 2, "evaluation.limit: got 0, expected >= 1"),
        (["evaluation.tasks=[]", "long_range.measures=[]"], 2, "expected something to measure"),
        (
            ["evaluation.tasks=[]", "long_range.num_tokens=1_000_000"],
            2,
            "num_tokens: got 1000000, expected at most",
        ),
        (["evaluation.tasks=[piqa]"], 2, "evaluation: no data of piqa .*make evaluate DATA=FOLDER.*or a network"),
        (["training_data=absent"], 2, "training_data: the tokenizer of .* token shards: task.data: got 'absent'"),
        (["evaluation.prefix_token=999"], 2, r"evaluation.prefix_token: got 999, expected an id below 2\d\d"),
        (["name=a/b"], 2, "name: got 'a/b'"),
        (["strength=1.5"], 2, "strength: got 1.5, expected at most 1"),
        (["--limit"], 2, "--limit: got an option, expected KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, code, error, evaluate, tmp_path, capfd):
    assert evaluate(tmp_path, *words) == code
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(error, err), err
    assert not list(tmp_path.rglob("*.json"))


def test_an_exported_run_has_the_scores_of_the_run(run_folder, task_data, evaluated, evaluate, tmp_path, capfd):
    """By the same code: its lengths, its tokenizer and what is known of its training come with the folder."""
    from palimpsa.conversion.command import convert_main

    folder = tmp_path / "exported"
    assert convert_main(["export", str(run_folder), str(folder)]) == 0
    more = ("evaluation.tasks=[piqa,lambada_openai]", "long_range.measures=[]", f"evaluation.data_dir={task_data}")
    assert evaluate(tmp_path, *more, f"checkpoint={folder}") == 0
    result, of_run = (
        json.loads((results / f"evaluations/{name}/result.json").read_text())
        for results, name in ((tmp_path, "exported"), (evaluated, NAME))
    )
    for key in ("max_length", "prefix_token"):
        assert result[key] == of_run[key]
    assert result["trained"] == of_run["trained"] | {"scale": None}
    for name, task in result["tasks"].items():
        assert task["metrics"] == of_run["tasks"][name]["metrics"], name
    (folder / "model.safetensors").unlink()
    assert evaluate(tmp_path, *more, f"checkpoint={folder}") == 2
    assert f"{folder}: got no model that can be loaded" in capfd.readouterr().err


def test_a_damaged_file_of_an_export_is_told_with_its_name_and_spoils_no_table(
    run_folder, task_data, evaluate, tmp_path, capfd
):
    from palimpsa.conversion.command import convert_main

    assert convert_main(["export", str(run_folder), str(tmp_path / "exported")]) == 0
    capfd.readouterr()
    more = ("evaluation.tasks=[piqa]", "long_range.measures=[]", f"evaluation.data_dir={task_data}")
    for file, content, told in (
        ("training.json", '{"seed": "one"}', 'seed is "one", expected an integer'),
        ("training.json", '{"learning_rate": [1]}', "learning_rate is .1., expected a number"),
        ("training.json", "[]", "got .., expected what is known of a run"),
        ("tokenizer_facts.json", "{", "expected what is known of a tokenizer"),
        ("tokenizer_facts.json", "{}", "name: missing, expected str"),
        ("tokenizer_facts.json", '{"name": 1, "vocab_size": 9, "end_of_text": 8}', "kind: missing, expected str"),
        ("tokenizer_facts.json", "[]", "got .., expected what is known of a tokenizer"),
    ):
        folder = shutil.copytree(tmp_path / "exported", tmp_path / "damaged", dirs_exist_ok=True)
        (folder / file).write_text(content)
        assert evaluate(tmp_path, *more, f"checkpoint={folder}") == 2
        err = capfd.readouterr().err
        assert re.search(f"error: {folder / file}: .*{told}", err), err
    assert not (tmp_path / "commonsense").exists()


def test_strength_is_swept_at_fixed_weights(evaluate, task_data, run_folder, tmp_path, capfd):
    """From the model without importances to the run's own, each in rows of its own."""
    import torch

    from palimpsa.evaluation.trained import load_trained

    more = (f"evaluation.data_dir={task_data}", "evaluation.tasks=[lambada_openai]", "long_range.measures=[]")
    for strength in ("null", "1", "0.25", "0"):
        assert evaluate(tmp_path, *more, f"strength={strength}") == 0
    names = [NAME, *(f"{NAME}_strength_{strength}" for strength in ("1", "0.25", "0"))]
    results = [json.loads((tmp_path / f"evaluations/{name}/result.json").read_text()) for name in names]
    assert [result["strength"] for result in results] == [None, 1.0, 0.25, 0.0]
    assert results[3]["label"] == f"{results[0]['label']}, strength 0"
    own, one, quarter, none = (
        result["tasks"]["lambada_openai"]["metrics"]["perplexity"]["value"] for result in results
    )
    assert own == one
    assert len({own, quarter, none}) == 3
    rows = pd.read_csv(tmp_path / "commonsense/demonstration/evaluation.csv")
    assert set(rows["name"]) == set(names)
    # Weights alone are what is the same: without precisions it is the twin.
    trained = load_trained(run_folder)
    from palimpsa.model.build import build_skeleton

    keys = {**trained.config["model"], "mixer": {**trained.config["model"]["mixer"], "metaplastic": False}}
    twin = build_skeleton(keys).eval()
    twin.load_state_dict({k: v for k, v in trained.model.state_dict().items() if ".plasticity." not in k})
    from palimpsa.mixers.plasticity import set_strength

    set_strength(trained.model, 0.0)
    tokens = torch.arange(40)[None]
    torch.testing.assert_close(trained.model(tokens), twin(tokens), atol=1e-5, rtol=1e-4)
    # A model that is no Palimpsa.
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "llama")
    assert evaluate(tmp_path, *more, "strength=0", f"checkpoint={tmp_path / 'llama'}") == 2
    assert "strength: got 0, expected null with" in capfd.readouterr().err


def test_a_full_disk_is_one_line_with_the_file(evaluate, task_data, tmp_path, monkeypatch, capfd):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    assert (
        evaluate(tmp_path, f"evaluation.data_dir={task_data}", "evaluation.tasks=[piqa]", "long_range.measures=[]") == 1
    )
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    # The first that is written, as soon as a task is done.
    assert "unfinished/piqa.json" in line


def test_a_batch_that_a_gpu_is_too_small_for_is_one_line_that_names_one_that_fits(
    evaluate, task_data, tmp_path, monkeypatch, capfd
):
    from palimpsa.evaluation.models.scoring import NativeNetwork

    logits_at = NativeNetwork.logits_at

    def with_little_memory(self, tokens, rows, positions):
        if len(tokens) > 2:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits_at(self, tokens, rows, positions)

    monkeypatch.setattr(NativeNetwork, "logits_at", with_little_memory)
    words = [f"evaluation.data_dir={task_data}", "evaluation.tasks=[piqa]", "long_range.measures=[]"]
    assert evaluate(tmp_path, *words) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert re.search(r"^error: evaluation\.batch_size: got 32, too large for the memory of cpu with .*; 2 fits$", line)
    # And it does.
    assert evaluate(tmp_path, *words, "evaluation.batch_size=2") == 0


@pytest.mark.parametrize(
    ("group", "key", "told"),
    [
        ("task", "context", "config.json: task.context is missing, expected an integer >= 0"),
        ("model", "label", "config.json: model.label is missing, expected a non-empty string"),
        ("optimizer", "lr", "config.json: optimizer.lr is missing, expected a number > 0"),
    ],
)
def test_a_run_whose_config_lacks_a_key_is_told_with_file_and_key(group, key, told, run_folder, tmp_path):
    from palimpsa.config.errors import RunDirectoryError
    from palimpsa.evaluation.trained import load_trained

    config = json.loads((run_folder / "config.json").read_text())
    del config[group][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirectoryError, match=told):
        load_trained(tmp_path)


def test_an_old_runs_config_is_read_with_its_keys_where_they_were(run_folder, tmp_path):
    from palimpsa.runs.stored_config import read_stored_config

    config = json.loads((run_folder / "config.json").read_text())
    old = json.loads(json.dumps(config))
    old["scale"]["tokens_per_step"] = old["task"].pop("tokens_per_step")
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_stored_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("kind", [{"kind": "mqar"}, {}, {"kind": None}])
def test_a_run_of_another_task_is_no_language_model(kind, run_folder, tmp_path):
    from palimpsa.config.errors import RunDirectoryError
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.schema import load

    config = json.loads((run_folder / "config.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes((run_folder / "checkpoints/last.ckpt").read_bytes())
    del config["task"]["kind"]
    config["task"] |= {"name": "recall", **kind}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirectoryError, match=r"got a run of task recall in .*, expected the directory of a"):
        load_evaluated(load([f"checkpoint={tmp_path}"]))


@pytest.fixture
def exported(run_folder, tmp_path):
    from palimpsa.conversion.checkpoint import read_trained
    from palimpsa.conversion.folder import export_folder

    export_folder(read_trained(run_folder), tmp_path / "exported")
    return tmp_path / "exported"


@pytest.mark.parametrize("change", ["written", "removed"])
@pytest.mark.parametrize("kind", ["run", "export"])
def test_a_checkpoint_that_changes_while_it_is_read_is_refused(
    kind, change, request, run_folder, tmp_path, monkeypatch
):
    from palimpsa.conversion import folder as conversion
    from palimpsa.evaluation import trained
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.schema import load

    if kind == "run":
        folder, module, name = tmp_path / "copy", trained, "load_trained"
        shutil.copytree(run_folder, folder)
        path = watched = folder / "checkpoints/last.ckpt"
    else:
        folder, module, name = request.getfixturevalue("exported"), conversion, "load_folder"
        path, watched = folder / "model.safetensors", folder
    config = load([f"checkpoint={folder}", "device=cpu"])
    assert len(load_evaluated(config).digest) == 64
    own = getattr(module, name)

    def read_and_change(*arguments):
        found = own(*arguments)
        if change == "written":
            path.write_bytes(path.read_bytes() + b"0")
        else:
            path.unlink()
        return found

    monkeypatch.setattr(module, name, read_and_change)
    error = f"^checkpoint: {watched} was written or removed while it was read, expected one that stays: "
    with pytest.raises(ConfigError, match=error):
        load_evaluated(config)


def test_without_a_checkpoint_it_is_the_run_that_make_pretrain_leaves(compose_config, tmp_path):
    from palimpsa.evaluation.schema import load

    trained = compose_config("task=commonsense", "model=lm/palimpsa_d_tiny", "scale=laptop", f"results_dir={tmp_path}")
    assert load([f"results_dir={tmp_path}"]).checkpoint == trained.run_dir


def test_documents_are_a_files_or_those_of_the_validation_split(run_folder, tmp_path):
    from palimpsa.evaluation.long_range import LongRange
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.models.scoring import Scorer
    from palimpsa.evaluation.schema import load

    texts = ["short", "A text of more than sixteen bytes.", "And one more, which is as long."]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    more = [f"checkpoint={run_folder}", "long_range.num_tokens=16"]

    def documents(*words):
        config = load([*more, *words])
        model = load_evaluated(config)
        return LongRange(model, Scorer(model.network, 4), config.long_range).documents()

    found = documents(f"long_range.documents={path}")
    assert [bytes(one.astype("uint8")).decode() for one in found] == ["A text of more t", "And one more, wh"]
    assert documents("long_range.max_documents=1", f"long_range.documents={path}").shape == (1, 16)
    # The first chapter.
    assert bytes(documents()[0].astype("uint8")).decode().startswith("Chapter")
    with pytest.raises(ConfigError, match=r"long_range\.documents: .*absent\.jsonl: no such file"):
        documents("long_range.documents=absent.jsonl")
