"""The harness on models of transformers' public layouts: through our scoring what it finds through its own.

And what surrounds it: data that are local, answers that are long, averages and standard errors.
"""

import json
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.harness_tasks import AVERAGES, TASKS, check_task_names, write_definitions

MAX_LENGTH = 96
# Bytes, and the end of a text.
V = 257


def byte_tokenizer(add_bos_token: bool):
    """A tokenizer of transformers' own, of bytes; with a token before every text, as Llama's has it, or without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({one: place for place, one in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    if add_bos_token:
        inner.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", len(alphabet))]
        )
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=MAX_LENGTH, **end)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=MAX_LENGTH, **sizes))


def mamba2():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8}
    return Mamba2ForCausalLM(Mamba2Config(vocab_size=V, n_groups=1, chunk_size=16, **sizes))


@pytest.fixture(scope="module", params=["llama", "mamba2"])
def public_folder(request, tmp_path_factory):
    """A folder that save_pretrained has written, of a small model with random weights."""
    import torch

    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = llama() if request.param == "llama" else mamba2()
        for parameter in model.parameters():
            # As made, all logits are almost alike.
            parameter.data.mul_(3)
    model.save_pretrained(folder)
    byte_tokenizer(add_bos_token=request.param == "llama").save_pretrained(folder)
    return folder


def public_model(folder):
    """Arguments of HFLM: by transformers' own class, whatever another library has registered."""
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder, dtype="float32")
    return {"pretrained": model, "tokenizer": transformers.AutoTokenizer.from_pretrained(folder)}


def load_evaluated(folder, *more):
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.schema import load

    return load_evaluated(load([f"checkpoint={folder}", "device=cpu", *more]))


def through_ours(folder, data, names, batch_size=4):
    from palimpsa.evaluation.harness import HarnessModel, run_harness
    from palimpsa.evaluation.models.scoring import Scorer

    model = load_evaluated(folder)
    ours = HarnessModel(Scorer(model.network, batch_size), model.codec, model.max_length)
    return run_harness(ours, names, data_dir=str(data), limit=None), ours


def test_a_public_model_scores_through_ours_as_through_the_harness_alone(public_folder, task_data):
    from lm_eval.models.huggingface import HFLM

    from palimpsa.evaluation.harness import run_harness

    theirs = HFLM(**public_model(public_folder), device="cpu", dtype="float32", batch_size=3)
    expected = run_harness(theirs, list(TASKS), data_dir=str(task_data), limit=None)
    found, ours = through_ours(public_folder, task_data, list(TASKS))
    assert (ours.max_length, ours.prefix_token_id) == (theirs.max_length, theirs.prefix_token_id) == (MAX_LENGTH, 256)
    for name, one in expected.tasks.items():
        assert found.tasks[name].num_items == one.num_items > 1
        for metric, measured in one.metrics.items():
            assert found.tasks[name].metrics[metric].value == pytest.approx(measured.value, rel=1e-4), (name, metric)
            assert found.tasks[name].metrics[metric].stderr == pytest.approx(measured.stderr, rel=1e-3), (name, metric)
    # A text of more than max_length was among them.
    assert found.tasks["wikitext"].num_truncated == 1
    # And a context before an answer.
    assert found.tasks["lambada_openai"].num_truncated == 1
    # The accuracies tell right from wrong.
    assert len({one.metrics["acc"].value for one in found.tasks.values() if "acc" in one.metrics}) > 2


def test_a_model_is_transformers_own_where_another_library_has_one_of_its_type(public_folder):
    """Of flash-linear-attention's Mamba-2, whose kernels do not run on a CPU."""
    import fla.models

    from palimpsa.evaluation.models.public_folders import class_of_a_folder

    assert fla.models.Mamba2ForCausalLM
    assert class_of_a_folder(public_folder).__module__.startswith("transformers.")


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_a_text_begins_as_the_harness_alone_has_it_begin(add_bos_token, tmp_path):
    """With the token that begins a text, which need not be the one that ends it, once: also where the text has it."""
    from lm_eval.models.huggingface import HFLM

    from palimpsa.evaluation.models.codecs import TransformersCodec

    tokenizer = byte_tokenizer(add_bos_token)
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    theirs = HFLM(pretrained=llama(), tokenizer=tokenizer, device="cpu", dtype="float32")
    ours = TransformersCodec(tokenizer)
    assert ours.prefix_token == theirs.prefix_token_id == tokenizer.bos_token_id != ours.end_of_text
    for text in ("A text", "<|endoftext|>A text", "", "A <|endoftext|>"):
        assert ours.encode(text) == theirs.tok_encode(text), text
    assert TransformersCodec(tokenizer, 65).prefix_token == 65


def test_another_prefix_or_length_is_seen(public_folder, task_data):
    """What the test above compares changes with either."""
    from palimpsa.evaluation.harness import HarnessModel, run_harness
    from palimpsa.evaluation.models.scoring import Scorer

    def word_perplexity(*more):
        model = load_evaluated(public_folder, *more)
        ours = HarnessModel(Scorer(model.network, 4), model.codec, model.max_length)
        return run_harness(ours, ["wikitext"], data_dir=str(task_data), limit=None).tasks["wikitext"].metrics

    as_trained = word_perplexity()["word_perplexity"].value
    for other in ("evaluation.prefix_token=65", "evaluation.max_length=50"):
        assert word_perplexity(other)["word_perplexity"].value != pytest.approx(as_trained, rel=1e-3)


def test_real_records_score_through_ours_as_through_the_harness_alone(public_folder, real_task_data, tmp_path):
    """The first two of each task that are short enough for HFLM."""
    from lm_eval.models.huggingface import HFLM

    from palimpsa.evaluation.harness import run_harness

    names = [name for name in TASKS if name not in ("wikitext", "piqa")]
    theirs = HFLM(**public_model(public_folder), device="cpu", dtype="float32", batch_size=3, max_length=512)
    model = load_evaluated(public_folder, "evaluation.max_length=512")
    from palimpsa.evaluation.harness import HarnessModel
    from palimpsa.evaluation.models.scoring import Scorer

    ours = HarnessModel(Scorer(model.network, 8), model.codec, model.max_length)
    expected, found = (run_harness(one, names, data_dir=str(real_task_data), limit=2) for one in (theirs, ours))
    for name in names:
        for metric, measured in expected.tasks[name].metrics.items():
            assert found.tasks[name].metrics[metric].value == pytest.approx(measured.value, rel=1e-3), (name, metric)


def test_an_answer_longer_than_max_length_is_scored_whole(byte_codec, known_network, rules):
    """HFLM refuses it. A bigram model needs no more than a token before each."""
    from lm_eval.api.instance import Instance

    from palimpsa.evaluation.harness import HarnessModel
    from palimpsa.evaluation.models.scoring import Scorer

    table = np.log(np.random.default_rng(0).dirichlet(np.ones(V), V))
    model = HarnessModel(Scorer(known_network(rules["bigram"](table), V), 4), byte_codec, max_length=10)
    context, answer = "What is it?", " It is an answer of more than ten bytes."
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in ((context, answer), ("Short", " one"))]
    (likelihood, is_greedy), (short, _) = model.loglikelihood(asked)
    text = (context + answer).encode()
    first = len(context)
    assert likelihood == pytest.approx(sum(table[pair] for pair in pairwise(text[first - 1 :])), abs=1e-4)
    assert not is_greedy
    assert short == pytest.approx(sum(table[pair] for pair in pairwise(b"t one")), abs=1e-4)
    assert model.num_truncated == 1


def test_a_text_is_read_from_the_prefix_token_on(byte_codec, known_network, rules):
    from lm_eval.api.instance import Instance

    from palimpsa.evaluation.harness import HarnessModel
    from palimpsa.evaluation.models.scoring import Scorer

    table = np.log(np.random.default_rng(0).dirichlet(np.ones(V), V))
    model = HarnessModel(Scorer(known_network(rules["bigram"](table), V), 4), byte_codec, max_length=8)
    text = "A text in three windows"
    (found,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    tokens = [byte_codec.end_of_text, *text.encode()]
    assert found == pytest.approx(sum(table[pair] for pair in pairwise(tokens)), abs=1e-4)
    assert model.num_truncated == 1


def test_standard_errors_are_the_harnesss_or_those_of_a_bootstrap():
    from lm_eval.api.metrics import mean_stderr

    from palimpsa.evaluation.statistics import mean_accuracy, mean_perplexity, ratio_perplexity

    draw = np.random.default_rng(0)
    right = draw.integers(0, 2, 50).astype(float)
    assert mean_accuracy(right).stderr == pytest.approx(mean_stderr(right.tolist()))
    likelihoods, words = -draw.gamma(4, 10, 200), draw.integers(50, 300, 200).astype(float)
    likelihoods -= words
    chosen = draw.integers(0, 200, (2_000, 200))
    resampled = np.exp(-likelihoods[chosen].sum(1) / words[chosen].sum(1))
    found = ratio_perplexity(likelihoods, words)
    assert found.value == pytest.approx(math.exp(-likelihoods.sum() / words.sum()))
    assert found.stderr == pytest.approx(resampled.std(), rel=0.1)
    small = likelihoods / 100
    assert mean_perplexity(small).stderr == pytest.approx(np.exp(-small[chosen].mean(1)).std(), rel=0.1)
    assert math.isnan(mean_accuracy(right[:1]).stderr)


def test_an_average_adds_the_errors_of_its_tasks_as_squares():
    from palimpsa.evaluation.harness import averages
    from palimpsa.evaluation.statistics import Measured, TaskResult

    assert AVERAGES["average_of_7"] == tuple(name for name in TASKS if name not in ("wikitext", "boolq"))
    assert AVERAGES["average_of_8"] == (*AVERAGES["average_of_7"], "boolq")
    results = {
        name: TaskResult({str(TASKS[name].accuracy): Measured(0.1 * place, 0.01 * place)}, 9, 0, 0.0)
        for place, name in enumerate(AVERAGES["average_of_8"])
    }
    found = averages(results)
    assert found["average_of_7"].value == pytest.approx(0.3)
    assert found["average_of_7"].stderr == pytest.approx(0.01 * math.sqrt(sum(k**2 for k in range(7))) / 7)
    assert found["average_of_8"].value == pytest.approx(0.35)
    del results["piqa"]
    assert averages(results) == {}


def test_a_task_that_is_misspelt_names_the_nearest():
    with pytest.raises(ConfigError, match=r"evaluation\.tasks: got 'helaswag', expected .*did you mean 'hellaswag'"):
        check_task_names(["piqa", "helaswag"])
    with pytest.raises(ConfigError, match=r"evaluation\.tasks: got 'piqa' twice"):
        check_task_names(["piqa", "boolq", "piqa"])


def definitions(names, data, folder):
    folder.mkdir()
    return write_definitions(names, str(data), folder)


@pytest.mark.parametrize("answer", ["1", -1])
def test_an_answer_that_is_no_choice_is_not_scored_as_wrong(
    answer, tmp_path, task_data, byte_codec, known_network, rules, monkeypatch
):
    """Of the hub's records, which nobody has looked at: of local ones it is told before."""
    monkeypatch.setattr("palimpsa.evaluation.harness_tasks.check_records", lambda *arguments: False)
    from palimpsa.evaluation.harness import HarnessModel, run_harness
    from palimpsa.evaluation.models.scoring import Scorer

    record = json.loads((task_data / "piqa.jsonl").read_text().splitlines()[0])
    (tmp_path / "piqa.jsonl").write_text(json.dumps({**record, "label": answer}))
    model = HarnessModel(Scorer(known_network(rules["uniform"](V), V), 4), byte_codec, MAX_LENGTH)
    with pytest.raises(ConfigError, match=f"piqa: got {answer!r} for the answer of record 1, expected the number"):
        run_harness(model, ["piqa"], data_dir=str(tmp_path), limit=None)


def test_records_that_are_missing_are_told_with_both_ways(tmp_path):
    (tmp_path / "piqa.jsonl").touch()
    with pytest.raises(ConfigError, match=r"piqa\.jsonl: is empty, expected the records of piqa"):
        definitions(["piqa"], tmp_path, tmp_path / "made")
    with pytest.raises(
        ConfigError, match=r"evaluation\.data_dir: got 'absent', which is no folder, .*DATA=FOLDER.*hub"
    ):
        definitions(["boolq"], "absent", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"evaluation\.data_dir: .*boolq\.jsonl: missing, .*DATA=FOLDER.*the hub"):
        definitions(["boolq"], tmp_path, tmp_path / "more")


@pytest.mark.parametrize("is_told", [True, False], ids=["offline", "unplugged"])
def test_without_data_and_without_a_network_one_line_says_both_ways(
    is_told, byte_codec, known_network, rules, monkeypatch
):
    """Whether the hub is told to stay offline, or finds out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_told)
    from palimpsa.evaluation.harness import HarnessModel, run_harness
    from palimpsa.evaluation.models.scoring import Scorer

    model = HarnessModel(Scorer(known_network(rules["uniform"](V), V), 4), byte_codec, 64)
    with pytest.raises(ConfigError, match=r"evaluation: no data of piqa \(.*make evaluate DATA=FOLDER.*, or a network"):
        run_harness(model, ["piqa"], data_dir=None, limit=1)


def test_what_is_replaced_in_a_definition_is_said_and_nothing_is_where_the_raw_fields_are(tmp_path, task_data):
    found = definitions(["hellaswag", "piqa"], task_data, tmp_path / "cleaned")
    (note,) = found.notes
    assert note.startswith("hellaswag: process_docs is left out: the file has no ctx_a")
    assert [len(one["sha256"]) for one in found.files.values()] == [64, 64]
    assert "process_docs: null" in (tmp_path / "cleaned/hellaswag.yaml").read_text()
    raw = {"ctx_a": "A man", "ctx_b": "he", "activity_label": "Cooking", "endings": ["a", "b", "c", "d"], "label": "1"}
    (tmp_path / "hellaswag.jsonl").write_text(f"{json.dumps(raw)}\n")
    assert definitions(["hellaswag"], tmp_path, tmp_path / "raw").notes == []
    assert "process_docs" not in (tmp_path / "raw/hellaswag.yaml").read_text()


def test_raw_and_cleaned_hellaswag_score_alike(tmp_path, task_data, byte_codec, known_network, rules):
    """The definition's own preprocessing, and records that were preprocessed."""
    from palimpsa.evaluation.harness import HarnessModel, run_harness
    from palimpsa.evaluation.models.scoring import Scorer

    endings = ["eats [title] soup.", "flies.", "is  a pan.", "stirs."]
    raw = {"ctx_a": "A man", "ctx_b": "he", "activity_label": "Cooking", "endings": endings, "label": "2"}
    cleaned = {"query": "Cooking: A man He", "choices": ["eats. soup.", "flies.", "is a pan.", "stirs."], "label": 2}
    table = np.log(np.random.default_rng(0).dirichlet(np.ones(V), V))
    model = HarnessModel(Scorer(known_network(rules["bigram"](table), V), 4), byte_codec, 64)
    asked = []
    for name, record in (("raw", raw), ("cleaned", cleaned)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hellaswag.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(record)}\n")
        model.tok_encode = lambda text, add_special_tokens=None: asked.append(text) or list(text.encode())
        run_harness(model, ["hellaswag"], data_dir=str(tmp_path / name), limit=None)
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]


def test_a_folder_that_cannot_be_evaluated_is_told(public_folder, tmp_path):
    from palimpsa.evaluation.schema import load

    with pytest.raises(
        ConfigError, match=r"checkpoint: got '.*', without a config\.json in it, expected the directory"
    ):
        load_evaluated(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"checkpoint: got '.*', without a model in it"):
        load_evaluated(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoint: got '.*absent', which is no folder, .*make pretrain"):
        load_evaluated(tmp_path / "absent")
    copy = tmp_path / "copy"
    shutil.copytree(public_folder, copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"copy' without weights for .*layers\.2\..* and \d+ more, expected all"):
        load_evaluated(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint: got '.*copy' without a model that can be read"):
        load_evaluated(copy)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"checkpoint: got '.*copy' without a tokenizer that can be read"):
        load_evaluated(copy)
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"checkpoint: got '.*copy' without a tokenizer, expected one of tokenizer\.json"
    ):
        load_evaluated(copy)
    with pytest.raises(ConfigError, match=r"device: got 'gpu', expected one of auto, cpu, cuda"):
        load([f"checkpoint={copy}", "device=gpu"])


def test_a_tokenizer_of_more_words_than_the_model_is_refused(public_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(public_folder, copy)
    tokenizer = byte_tokenizer(add_bos_token=False)
    tokenizer.add_tokens(["more", "words"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(
        ConfigError, match=r"checkpoint: got a tokenizer of 259 words with .*copy, expected at most the 257"
    ):
        load_evaluated(copy)


def test_what_learnt_positions_cannot_reach_is_left_out_and_said(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from palimpsa.evaluation.long_range import LongRange
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.models.scoring import Scorer
    from palimpsa.evaluation.schema import load

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=MAX_LENGTH, **sizes)).save_pretrained(tmp_path)
    byte_tokenizer(add_bos_token=False).save_pretrained(tmp_path)
    wanted = ["long_range.measures=[phonebook]", "long_range.num_books=2", "long_range.book_sizes=[64]"]
    config = load([f"checkpoint={tmp_path}", "device=cpu", *wanted])
    model = load_evaluated(config)
    long_range = LongRange(model, Scorer(model.network, 4), config.long_range)
    assert long_range.run(None) == {}
    (note,) = long_range.notes
    assert note.startswith(f"phonebook is not measured: checkpoint: the model reads at most {MAX_LENGTH} tokens")
