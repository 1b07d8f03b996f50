"""configs/prepare_text.yaml: every source composes, and every mistake is one line, told before any work."""

import subprocess
import sys

import pytest

from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.errors import ConfigError
from palimpsa.text.schema import SOURCES, load

# Each command line, and what the message must say.
MISTAKES = {
    "tokeniser=bytes": ("tokeniser: unknown key", "did you mean 'tokenizer'"),
    "+foo=1": ("foo: unknown key",),
    "source=hubs": ("source: got 'hubs'", "did you mean 'hub'"),
    "source.files=[a]": ("source.files: unknown key",),
    "source=files source.filse=[a]": ("source.filse: unknown key", "did you mean 'files'"),
    "source=sample source.text_field=x": ("source.text_field: unknown key",),
    "source=sample source.kind=web": ("source.kind: got 'web', expected one of hub, files, sample",),
    "source=files source.files=a.jsonl": ("source.files: got 'a.jsonl', expected list[str]",),
    "source.text_field=null": ("source.text_field: got None, expected str",),
    "validation_every=1": ("validation_every: got 1, expected >= 2",),
    "validation_every=x": ("validation_every: got 'x'",),
    "tokens_per_shard=0": ("tokens_per_shard: got 0, expected >= 1",),
    "tokens_per_shard=3e8": ("tokens_per_shard: got 300000000.0, expected int",),
    "max_tokens=0": ("max_tokens: got 0, expected >= 1",),
    "num_workers=0": ("num_workers: got 0, expected >= 1",),
    "fresh=1": ("fresh: got 1, expected bool",),
    "directory=": ("directory: got ''",),
    "directory=/proc/no/where": ("directory: got '/proc/no/where', expected a directory that can be written (/proc",),
    "directory=pyproject.toml": ("directory: got 'pyproject.toml', expected a directory that can be written",),
    "directory=???": ("directory: ",),
    "validation_files=[a]": ("validation_every: got 1000, expected null with validation_files",),
    "validation_files=[a] validation_every=null": ("validation_files: got ['a'], expected none but with source=files",),
    "seed": ("seed: expected KEY=VALUE",),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_line(words, monkeypatch):
    monkeypatch.chdir(CONFIG_DIR.parent)
    with pytest.raises(ConfigError) as error:
        load(words.split())
    for part in MISTAKES[words]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_every_source_is_composed():
    names = sorted(path.stem for path in (CONFIG_DIR / "source").glob("*.yaml"))
    assert names == sorted(SOURCES)
    for name in names:
        config = load([f"source={name}", "directory=x", *(["source.files=[a]"] if name == "files" else [])])
        assert (config.source.name, type(config.source)) == (name, SOURCES[name])


def test_the_default_is_fineweb_edu_with_a_document_of_a_thousand_for_validation():
    config = load([])
    assert config.source.__dict__ | {"licence": None} == {
        **{"name": "hub", "kind": "hub", "dataset": "HuggingFaceFW/fineweb-edu", "subset": "sample-10BT"},
        **{"split": "train", "revision": None, "text_field": "text", "licence_field": None, "licence": None},
    }
    assert (config.validation_every, config.directory, config.tokens_per_shard) == (1_000, "data/hub", 100_000_000)
    assert load(["max_tokens=15_000_000_000"]).max_tokens == 15_000_000_000


def test_the_script_says_how_it_is_called_and_refuses_options(run_script):
    code, out, _ = run_script("-h")
    assert (code, "prepare_text.py source=sample tokenizer=bytes" in out) == (0, True)
    code, _, err = run_script("--jobs=3")
    assert (code, "--jobs=3: got an option, expected KEY=VALUE" in err) == (2, True)


def test_reading_shards_needs_neither_torch_nor_hydra_nor_a_tokenizer():
    code = (
        "import palimpsa.text.shards, palimpsa.text.tokenizers, palimpsa.text.prepare, sys; print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.replace("'", "").strip("[]\n").split(", "))
    assert "numpy" in loaded
    assert not loaded & {"torch", "hydra", "datasets", "pyarrow", "sentencepiece", "tokenizers", "transformers", "rich"}
