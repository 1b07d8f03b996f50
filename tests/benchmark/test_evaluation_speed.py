"""benchmark=evaluation: both paths score the same, ratios are to HFLM on the Llama, mistakes are one line."""

import csv
import json
import time

import pytest

from palimpsa.benchmark.config import load
from palimpsa.benchmark.run import benchmark_main
from palimpsa.config.errors import ConfigError

RECORDS = [
    {"query": "Cooking: A man", "choices": ["eats.", "flies away.", "is a pan.", "stirs a pot of soup."], "label": 3},
    {"query": "Running: A girl", "choices": ["runs.", "sleeps on.", "is round.", "boils."], "label": 0},
    {"query": "Diving: She", "choices": ["burns.", "jumps into it.", "is.", "reads out a book."], "label": 1},
]
TINY_LLAMA = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MISTAKES = {
    "models=[]": ("models: got []",),
    "models=[lm/palimpsa_d_45m]": ("got 'palimpsa_d_45m'", "did you mean 'palimpsa_d_44m'"),
    "task=hellswag": ("task: got 'hellswag'", "did you mean 'hellaswag'"),
    "num_items=0": ("num_items: got 0, expected > 0",),
    "llama.hidden_size=0": ("llama.hidden_size: got 0, expected > 0",),
    "llama.num_attention_heads=3": ("llama.num_attention_heads: got 3, expected a divisor of hidden_size = 16",),
    "context=1": ("context: got 1, expected >= 2",),
    "device=gpu": ("device: got 'gpu'", "auto, cuda, cpu"),
    "dtype=float16": ("dtype: got 'float16'",),
    "data_dir=/nowhere": ("data_dir: /nowhere/hellaswag.jsonl cannot be read",),
    "tokenizer=nowhere/at-all": ("tokenizer: got 'nowhere/at-all'",),
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """Of a word a byte, and an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate([*words, "<end>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    (folder / "hellaswag.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


@pytest.fixture
def words(tokenizer_folder, data_dir, tmp_path):
    return [
        *("benchmark=evaluation", f"tokenizer={tokenizer_folder}", f"data_dir={data_dir}", f"results_dir={tmp_path}"),
        *("device=cpu", "num_items=3", "batch_size=4", "context=64", "models=[llama,lm/palimpsa_d_tiny]"),
        *(f"llama.{name}={value}" for name, value in TINY_LLAMA.items()),
    ]


@pytest.mark.parametrize("command_line", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_key(command_line, words):
    from palimpsa.benchmark.evaluation.rows import EvaluationBenchmark

    config = load([*words, command_line])
    with pytest.raises(ConfigError) as caught:
        EvaluationBenchmark(config)
    assert "\n" not in str(caught.value)
    for part in MISTAKES[command_line]:
        assert part in str(caught.value)


def test_a_tokenizer_of_more_words_than_the_model_is_refused():
    from palimpsa.benchmark.evaluation.folders import model_keys

    with pytest.raises(
        ConfigError, match=r"tokenizer: got one of 273 words, expected at most the 272 of lm/palimpsa_d"
    ):
        model_keys("lm/palimpsa_d_tiny", 273)


def test_a_llama_scores_the_same_by_both_paths(words, tmp_path):
    from palimpsa.benchmark.evaluation.folders import LLAMA, load_tokenizer, write_folder
    from palimpsa.benchmark.evaluation.process import PATHS, Evaluation, measure_evaluation

    config = load(words)
    num_parameters = write_folder(config, LLAMA, load_tokenizer(config.tokenizer), tmp_path / "llama")
    assert num_parameters == 257 * 16 + 7 * 16 * 16 + 3 * 16
    found = []
    for path in PATHS:
        asked = (config.task, config.data_dir, config.num_items, config.batch_size, config.context, "cpu", "float32")
        found.append(measure_evaluation(Evaluation(str(tmp_path / "llama"), path, *asked, started=time.time())))
        assert min(found[-1][name] for name in ("load_s", "first_s", "again_s")) > 0
    assert found[0]["value"] == found[1]["value"]


def test_rows_are_written_with_ratios_to_hflm_on_the_llama(words, tokenizer_folder, tmp_path, monkeypatch, capsys):
    from palimpsa.benchmark.evaluation import rows

    asked = []

    def measured(row, module, request):
        asked.append((row.model, row.path, json.loads(request)["num_items"], module))
        faster = 1 + len(asked)
        return {"load_s": 8.0, "first_s": 24.0 / faster, "again_s": 12.0, "value": 0.25}

    monkeypatch.setattr(rows, "measure_with_empty_caches", measured)
    assert benchmark_main(words) == 0
    module = "palimpsa.benchmark.evaluation.process"
    expected = [("llama", "hflm"), ("llama", "ours"), ("lm/palimpsa_d_tiny", "ours")]
    assert asked == [(model, path, 3, module) for model, path in expected]
    with (tmp_path / "evaluation_speed_cpu.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["model"], row["path"]) for row in found] == expected
    assert found[0]["speed_ratio"] == ""
    assert float(found[1]["speed_ratio"]) == pytest.approx(12 / 8)
    assert float(found[2]["speed_ratio"]) == pytest.approx(12 / 6)
    assert float(found[2]["total_speed_ratio"]) == pytest.approx((8 + 12) / (8 + 6), rel=1e-5)
    assert float(found[2]["again_speed_ratio"]) == 1.0
    assert "2.00 times as fast as HFLM" in capsys.readouterr().out
    assert benchmark_main(words) == 0
    assert len(asked) == 3
    # Rows of another tokenizer are no rows of this one.
    (tokenizer_folder / "tokenizer_config.json").write_text('{"eos_token": "<end>", "model_max_length": 7}')
    assert benchmark_main(words) == 2
    assert "tokenizer is '" in capsys.readouterr().err
