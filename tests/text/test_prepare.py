"""scripts/prepare_text.py: the same shards for any number of processes and after any kill, and nothing half-written."""

import errno
import json
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.text import tokenise
from palimpsa.text.prepare import prepare
from palimpsa.text.records import Batch, Fields
from palimpsa.text.schema import load
from palimpsa.text.shards import TokenShards
from palimpsa.text.tokenizers import load_tokenizer

from .conftest import content, texts, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


def shards_of(directory: Path, split: str) -> list[str]:
    """The documents' texts, by the shards alone."""
    shards = TokenShards.open(directory / split, verify="hashes")
    starts = [0, *shards.document_ends[:-1]]
    found = [shards.tokens(start, end) for start, end in zip(starts, shards.document_ends, strict=True)]
    assert all(one[-1] == 256 for one in found)
    assert shards.document_bytes.tolist() == [len(one) - 1 for one in found]
    return [bytes(one[:-1].tolist()).decode() for one in found]


def test_every_document_is_there_in_its_order(corpus, tmp_path, run_script):
    words = ("source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o")
    code, out, _ = run_script(*words, "validation_every=10")
    assert code == 0
    documents = texts(300)
    assert shards_of(tmp_path / "o", "validation") == documents[::10]
    assert shards_of(tmp_path / "o", "train") == [one for k, one in enumerate(documents) if k % 10]
    assert f"{tmp_path}/o/train: train, " in out


def test_the_manifest_says_what_is_in_the_shards(corpus, tmp_path, run_script):
    words = ("source=files", f"source.files=[{corpus}]", "source.licence_field=source", f"directory={tmp_path}/o")
    run_script(*words, "tokens_per_shard=100_000", "validation_every=2")
    manifest = TokenShards.open(tmp_path / "o/train").manifest
    assert manifest.num_documents == 150
    assert manifest.licences == {"s0": 50, "s1": 50, "s2": 50}
    assert manifest.num_bytes == sum(len(one.encode()) for one in texts(300)[1::2])
    assert manifest.source["files"][0]["file"] == "corpus.jsonl"
    facts = manifest.tokenizer
    assert (facts.name, facts.vocab_size, facts.end_of_text, len(facts.golden_ids)) == ("bytes", 257, 256, 20)
    assert {"python", "numpy"} <= manifest.versions.keys()
    assert manifest.command.startswith("scripts/prepare_text.py tokenizer=bytes")
    assert [one.size for one in manifest.shards[:-1]] == [200_000] * (len(manifest.shards) - 1)


def test_one_and_three_processes_make_the_same(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("palimpsa.text.documents.BATCH_BYTES", 50_000)
    made = []
    for num_workers in (1, 3):
        words = ["source=files", f"source.files=[{corpus}]", "tokenizer=bytes", "tokens_per_shard=50_000"]
        prepare(load([*words, f"num_workers={num_workers}", f"directory={tmp_path}/{num_workers}"]))
        made.append(content(tmp_path / str(num_workers)))
    assert len(made[0]) > 20
    assert made[0] == made[1]


def test_max_tokens_ends_behind_the_document_that_reaches_it(corpus, tmp_path, run_script):
    words = ("source=files", f"source.files=[{corpus}]", "validation_every=10", f"directory={tmp_path}/o")
    run_script(*words, "max_tokens=400_000")
    found, documents = shards_of(tmp_path / "o", "train"), [one for k, one in enumerate(texts(300)) if k % 10]
    assert found == documents[: len(found)]
    lengths = np.cumsum([len(one.encode()) + 1 for one in documents])
    assert lengths[len(found) - 2] < 400_000 <= lengths[len(found) - 1]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_file_whose_name_is_no_utf8_is_text_like_any_other(tmp_path, run_script):
    name = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / name, texts(20))
    words = ("source=files", f"source.files=[{tmp_path}/in]", f"directory={tmp_path}/o", "validation_every=5")
    assert run_script(*words)[0] == 0
    assert TokenShards.open(tmp_path / "o/train").manifest.source["files"][0]["file"] == name
    assert "already there" in run_script(*words)[1]


def test_validation_files_are_validation_alone(corpus, tmp_path, run_script):
    other = write_jsonl(tmp_path / "other.jsonl", texts(9, seed=1))
    words = ("source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o", f"validation_files=[{other}]")
    assert run_script(*words)[0] == 2
    assert run_script(*words, "validation_every=null")[0] == 0
    assert shards_of(tmp_path / "o", "train") == texts(300)
    assert shards_of(tmp_path / "o", "validation") == texts(9, seed=1)
    assert TokenShards.open(tmp_path / "o/validation").manifest.source["files"][0]["file"] == "other.jsonl"
    words = (*words[:2], f"directory={tmp_path}/p", f"validation_files=[{corpus}]", "validation_every=null")
    code, _, err = run_script(*words)
    assert (code, "expected none of source.files" in err) == (2, True)


def test_a_kill_behind_the_last_document_adds_no_other(corpus, tmp_path, run_script, monkeypatch):
    """The last batch fills a shard, so that all of it is saved when the kill comes."""
    words = ("source=files", f"source.files=[{corpus}]", "max_tokens=400_000", "tokens_per_shard=10_000")
    assert run_script(*words, f"directory={tmp_path}/whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("palimpsa.text.prepare._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_script(*words, f"directory={tmp_path}/parts")[0] == 130
    assert run_script(*words, f"directory={tmp_path}/parts")[0] == 0
    assert shards_of(tmp_path / "whole", "train") == shards_of(tmp_path / "parts", "train")


class Died(BaseException):
    """In the place of a kill, between any two writes."""


@pytest.mark.parametrize("split", ["every", "files", "none"])
def test_a_kill_at_any_write_changes_nothing(split, corpus, tmp_path, monkeypatch):
    """Killed at each 13th of its writes, one after the other, until it gets through."""
    monkeypatch.setattr("palimpsa.text.documents.BATCH_BYTES", 100_000)
    words = ["source=files", f"source.files=[{corpus}]", "tokenizer=bytes", "num_workers=1", "tokens_per_shard=150_000"]
    if split == "files":
        other = write_jsonl(tmp_path / "other.jsonl", texts(200, seed=1))
        words += [f"validation_files=[{other}]", "validation_every=null"]
    else:
        words += [f"validation_every={10 if split == 'every' else 'null'}"]
    prepare(load([*words, f"directory={tmp_path}/whole"]))
    replace, writes, deaths, resumed = os.replace, 0, 0, set()

    def die(*arguments):
        nonlocal writes
        writes += 1
        if writes % 13 == 0:
            raise Died
        replace(*arguments)

    monkeypatch.setattr("os.replace", die)
    while deaths < 50:
        try:
            config = load([*words, f"directory={tmp_path}/parts"])
            prepare(config, report=lambda standing: resumed.add(standing.resumed_tokens))
            break
        except Died:
            deaths += 1
    assert deaths >= 2
    assert len(resumed) >= 2, "it went on where it was"
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def test_a_killed_process_goes_on(corpus, tmp_path):
    """SIGKILL, with its workers: the shards and manifests are those of an undisturbed run; no process or file stays."""
    words = ["source=files", f"source.files=[{corpus}]", "source.licence_field=source", "tokenizer=bytes"]
    words += ["num_workers=2", "tokens_per_shard=100_000", "directory=out", "validation_every=10"]
    command = [sys.executable, str(ROOT / "scripts/prepare_text.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path / "temporary")}
    for name in ("whole", "parts", "temporary"):
        (tmp_path / name).mkdir()
    subprocess.run(command, cwd=tmp_path / "whole", env=environment, check=True, capture_output=True, timeout=300)
    progress = tmp_path / "parts/out/progress.json"
    process = subprocess.Popen(command, cwd=tmp_path / "parts", env=environment, stdout=subprocess.DEVNULL)
    while not progress.exists() and process.poll() is None:
        time.sleep(0.001)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert progress.exists(), "it was done before the kill"
    assert not (tmp_path / "parts/out/train/manifest.json").exists()
    with pytest.raises(ConfigError, match="expected token shards that"):
        TokenShards.open(tmp_path / "parts/out/train")
    assert workers
    deadline = time.monotonic() + 300
    while any(is_running(one) for one in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list((tmp_path / "temporary").iterdir())
    done = subprocess.run(command, cwd=tmp_path / "parts", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "that were there" in done.stdout
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(one) for one in (task / "children").read_text().split()]
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_there_is_not_made_again_and_another_config_is_refused(corpus, tmp_path, run_script):
    words = ["source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o", "tokens_per_shard=300_000"]
    assert run_script(*words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*.*") if path.name != ".lock"}
    code, out, _ = run_script(*words)
    assert (code, out.count("already there")) == (0, 2)
    for more, said in [
        ("tokens_per_shard=300_001", "another tokens_per_shard: 300000, not 300001"),
        ("validation_every=7", "another validation_every: 1000, not 7"),
        ("validation_every=null", "another validation_every: 1000, not None"),
        ("source.licence=x", "another fields.default_licence"),
    ]:
        code, _, err = run_script(*words, more)
        assert (code, said in err, err.count("\n")) == (2, True, 1), err
    write_jsonl(corpus, texts(299))
    code, _, err = run_script(*words)
    assert (code, "another source.files[0].s" in err) == (2, True), err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (tmp_path / "o/train/mine.txt").write_text("somebody's")
    assert run_script(*words, "fresh=true")[0] == 0
    assert len(shards_of(tmp_path / "o", "train")) == 298
    assert (tmp_path / "o/train/mine.txt").exists()


def test_work_that_is_not_finished_is_of_one_config_too(corpus, tmp_path, monkeypatch, run_script):
    words = ["source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o", "tokens_per_shard=300_000"]
    with monkeypatch.context() as patch:
        patch.setattr("palimpsa.text.prepare._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_script(*words)[0] == 130
    code, _, err = run_script(*words, "max_tokens=5")
    assert (code, "another max_tokens: None, not 5" in err) == (2, True)
    path = tmp_path / "o/progress.json"
    path.write_text(path.read_text().replace('"part": 0', '"part": 1'))
    code, _, err = run_script(*words)
    assert (code, f"{path}: is damaged or was changed" in err) == (2, True)
    assert run_script(*words, "fresh=true")[0] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(number, corpus, tmp_path, monkeypatch, run_script):
    """It is full for the third shard and has room again later."""
    words = ["source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o", "tokens_per_shard=300_000"]
    fsync = os.fsync

    def fail(descriptor):
        if "shard_00002" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        code, _, err = run_script(*words)
    assert code == 1
    (line,) = err.splitlines()
    assert f"{os.strerror(number)}: '{tmp_path}/o/train/shard_00002.bin'" in line
    assert not list((tmp_path / "o").rglob("manifest.json"))
    assert not list((tmp_path / "o").rglob("*shard_00002*"))
    assert json.loads((tmp_path / "o/progress.json").read_text())["writers"]["train"]["shards"]
    code, out, _ = run_script(*words)
    assert (code, "that were there" in out) == (0, True)
    assert len(shards_of(tmp_path / "o", "train")) == 299


def test_a_directory_that_is_being_made_is_left_alone(corpus, tmp_path, run_script):
    from palimpsa.runs.files import hold_lock

    (tmp_path / "o").mkdir()
    with hold_lock(tmp_path / "o/.lock"):
        code, _, err = run_script("source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o")
    assert (code, f"is being made by process {os.getpid()}" in err) == (2, True)


def test_a_worker_that_is_killed_is_one_line(corpus, tmp_path, run_script, monkeypatch):
    def kill_workers(*_):
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()

    monkeypatch.setattr("palimpsa.text.documents.BATCH_BYTES", 100_000)
    with monkeypatch.context() as patch:
        patch.setattr("palimpsa.text.command._Reporter.report", kill_workers)
        code, _, err = run_script("source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o")
    assert (code, err.count("\n")) == (1, 1)
    assert "a process that tokenised was killed: out of memory?" in err
    assert run_script("source=files", f"source.files=[{corpus}]", f"directory={tmp_path}/o")[0] == 0


def test_what_a_process_hands_over_cannot_be_cut_in_two(tmp_path, monkeypatch):
    """A kill in the middle of a message left the reader waiting for its rest for ever; so short a one has no middle."""
    monkeypatch.setattr(tokenise, "_tokenizer", load_tokenizer("bytes"))
    batch = Batch("a file", "record", 1, texts=["word " * 100_000])
    name = tokenise._tokenise_here(batch, Fields("text", None, "none"), str(tmp_path))
    assert len(pickle.dumps(name)) < select.PIPE_BUF / 2
    assert tokenise._take(name).lengths.tolist() == [500_001]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_of_what_processes_hand_over_is_named(tmp_path, monkeypatch):
    """It may be another one than that of the shards; the system does not say which."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokenise, "_tokenizer", load_tokenizer("bytes"))
    monkeypatch.setattr("pickle.dump", fail)
    batch = Batch("a file", "record", 1, texts=["a"])
    with pytest.raises(OSError, match="No space left") as raised:
        tokenise._tokenise_here(batch, Fields("text", None, "none"), str(tmp_path))
    # As it comes from the process.
    assert str(tmp_path) in str(pickle.loads(pickle.dumps(raised.value)))


def test_the_shipped_novel_is_prepared_in_seconds_without_a_network(tmp_path, run_script):
    words = ("source=sample", "validation_every=8", f"directory={tmp_path}/o")
    code, _, err = run_script(*words)
    assert code == 0, err
    train, validation = shards_of(tmp_path / "o", "train"), shards_of(tmp_path / "o", "validation")
    assert (len(train), len(validation)) == (21, 3)
    assert validation[1].startswith("Chapter 9\n\nCaptain Wentworth was come to Kellynch")
    assert TokenShards.open(tmp_path / "o/train").manifest.licences == {"public domain": 21}
    text = (ROOT / "src/palimpsa/text/sample/persuasion.txt").read_text(encoding="utf-8")
    assert text.startswith("Chapter 1\n\nSir Walter Elliot, of Kellynch Hall")
    assert 200_000 < len(text) < 500_000
