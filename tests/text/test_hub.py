"""The hub, with a local data set in its place: what it has is streamed and resumed; its absence is told in seconds."""

import json
import time

import httpx
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from palimpsa.config.errors import ConfigError
from palimpsa.text.hub import HubSource
from palimpsa.text.records import Fields, parse
from palimpsa.text.shards import TokenShards
from palimpsa.text.tokenizers import load_tokenizer

from .conftest import content, texts

DOCUMENTS = texts(700)
FIELDS = Fields("text", "source", "")


def source() -> HubSource:
    return HubSource("some/dataset", None, "train", None, FIELDS)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set of three parquet files in the hub's place; returns the revisions that were asked for."""
    for place in range(3):
        part = DOCUMENTS[place * 250 : (place + 1) * 250]
        table = pyarrow.table({"text": part, "source": [f"s{k % 3}" for k in range(len(part))]})
        pyarrow.parquet.write_table(table, tmp_path / f"part{place}.parquet", row_group_size=90)
    asked: list[str | None] = []

    def load_dataset(name, subset, *, split, revision, streaming):

        assert (name, split, streaming) == ("some/dataset", "train", True)
        asked.append(revision)
        files = [str(tmp_path / f"part{place}.parquet") for place in range(3)]
        return load("parquet", data_files={"train": files}, split=split, streaming=True)

    class Info:
        sha = "c0ffee"

    import datasets

    load = datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: Info)
    return asked


def test_records_are_streamed_in_order_and_from_behind_any_batch(hub):
    batches = list(source().batches(None))
    found = [one for batch in batches for one in parse(batch, FIELDS)]
    assert [one.text for one in found] == DOCUMENTS
    assert found[4].licence == "s1"
    assert len(batches) == 3
    for place, batch in enumerate(batches):
        state = json.loads(json.dumps(batch.after))
        rest = [one.text for after in source().batches(state) for one in parse(after, FIELDS)]
        assert rest == DOCUMENTS[256 * (place + 1) :]


def test_a_data_set_of_the_hub_is_prepared_and_resumed_at_its_revision(hub, tmp_path, run_script, monkeypatch):
    words = ("source.dataset=some/dataset", "source.subset=null", "tokens_per_shard=300_000", "validation_every=10")
    assert run_script(*words, f"directory={tmp_path}/whole")[0] == 0
    manifest = TokenShards.open(tmp_path / "whole/train", verify="hashes").manifest
    assert (manifest.num_documents, manifest.source["revision"]) == (630, "c0ffee")
    with monkeypatch.context() as patch:
        patch.setattr("palimpsa.text.prepare._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_script(*words, f"directory={tmp_path}/parts")[0] == 130

    def moved_on(*_, **__):
        raise AssertionError("the revision is known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", moved_on)
    assert run_script(*words, f"directory={tmp_path}/parts")[0] == 0
    assert set(hub) == {"c0ffee"}
    for name, data in content(tmp_path / "whole").items():
        if not name.endswith("manifest.json"):
            assert content(tmp_path / "parts")[name] == data


def test_a_missing_column_is_named(hub):
    with pytest.raises(ConfigError, match="some/dataset/train has no column 'body', expected one of text, source"):
        list(HubSource("some/dataset", None, "train", None, Fields("body", None, "")).batches(None))


def test_nothing_is_thrown_away_for_a_hub_that_cannot_be_reached(hub, tmp_path, run_script, monkeypatch):
    words = ("source.dataset=some/dataset", "source.subset=null", f"directory={tmp_path}/o")
    assert run_script(*words)[0] == 0
    before = content(tmp_path / "o")

    def refuse(*_, **__):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    assert run_script(*words)[0] == 0, "it is there"
    assert run_script(*words, "fresh=true")[0] == 2
    assert content(tmp_path / "o") == before


@pytest.mark.parametrize("lost", [ConnectionError("gone"), httpx.ReadTimeout("gone")], ids=["os", "httpx"])
def test_a_hub_that_is_lost_on_the_way_is_told(lost, hub, monkeypatch):
    import datasets

    def lose(*_, **__):
        yield {"text": ["a"], "source": ["b"]}
        raise lost

    monkeypatch.setattr(datasets.IterableDataset, "iter", lose)
    with pytest.raises(ConfigError, match=r"was lost after 1 records \(gone\); the same command goes on"):
        list(source().batches(None))


def test_an_unknown_subset_is_told_with_those_that_there_are(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("BuilderConfig 'x' not found.\nAvailable: ['default']")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ConfigError, match=r"source: got 'some/dataset/train', expected .* Available: \['default'\]"):
        list(source().batches(None))


@pytest.mark.parametrize("cause", ["offline", "unreachable"])
def test_a_hub_that_cannot_be_reached_is_one_line_in_seconds(cause, tmp_path, run_script, monkeypatch):
    if cause == "unreachable":

        def refuse(*_, **__):
            raise httpx.ConnectError("[Errno -2] Name or service not known")

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    started = time.perf_counter()
    code, _, err = run_script(f"directory={tmp_path}/o")
    assert (code, err.count("\n")) == (2, 1)
    assert "source.dataset: the hub cannot be reached for 'HuggingFaceFW/fineweb-edu'" in err
    assert "source=files source.files=[PATH], or source=sample" in err
    with pytest.raises(ConfigError, match=r"tokenizer: the hub cannot be reached for 'a/b' .* tokenizer=PATH"):
        load_tokenizer("a/b")
    assert time.perf_counter() - started < 10


def test_a_name_that_the_hub_does_not_have_is_told(monkeypatch):
    def refuse(*_, **__):
        request = httpx.Request("GET", "https://hub.example")
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=request))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(ConfigError, match="tokenizer: got 'a/b', which the hub does not have"):
        load_tokenizer("a/b")
    with pytest.raises(ConfigError, match=r"source\.dataset: got 'some/dataset', which the hub does not have"):
        source().resolve_revision()


def test_a_tokenizer_of_the_hub_is_read_by_the_library_of_its_file(tmp_path, monkeypatch):
    """tokenizer.model comes before tokenizer.json, which transformers would take."""
    asked = []

    class Sibling:
        def __init__(self, name):
            self.rfilename = name

    class Info:
        siblings = tuple(map(Sibling, ("tokenizer.json", "tokenizer.model", "config.json")))

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        (tmp_path / file).write_bytes(b"x")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: Info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ConfigError, match="expected a SentencePiece model"):
        load_tokenizer("a/b", revision="r")
    assert asked == [("a/b", "tokenizer.model", "r")]
    Info.siblings = ()
    with pytest.raises(ConfigError, match=r"expected a repository with tokenizer\.model, or"):
        load_tokenizer("a/b")
