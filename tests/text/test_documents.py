"""Local files: every kind is read in order and from anywhere, and each bad input is one line with its file and line."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from palimpsa.config.errors import ConfigError
from palimpsa.text.documents import FileSource
from palimpsa.text.records import Batch, Fields, parse

from .conftest import texts, write_jsonl

FIELDS = Fields("text", "source", "not stated")
PLAIN_FIELDS = Fields("text", None, "mine")


def compress(path: Path, ending: str) -> Path:
    new = path.with_name(f"{path.name}{ending}")
    data = path.read_bytes()
    if ending == ".zst":
        with pyarrow.CompressedOutputStream(str(new), "zstd") as stream:
            stream.write(data)
    else:
        new.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}[ending](data))
    return new


def write_parquet(path: Path, documents: list, row_group_size: int = 70) -> Path:
    table = pyarrow.table({"text": documents, "source": [f"s{k % 3}" for k in range(len(documents))], "n": documents})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def read(source: FileSource, state=None) -> list[str]:
    return [one.text for batch in source.batches(state) for one in parse(batch, source.fields)]


@pytest.fixture(params=[".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".txt.xz"])
def made(request, tmp_path) -> tuple[FileSource, list[str]]:
    """Two files of a kind, and their documents."""
    documents = texts(250)
    paths = []
    for place, part in enumerate((documents[:200], documents[200:])):
        path = tmp_path / f"{place}{request.param}"
        if ".jsonl" in request.param:
            plain = write_jsonl(tmp_path / f"{place}.jsonl", part)
            path = compress(plain, path.suffix) if path != plain else plain
        elif ".txt" in request.param:
            plain = tmp_path / f"{place}.txt"
            plain.write_text("\n".join(f"= {k} =\n{one}" for k, one in enumerate(part)), encoding="utf-8")
            path = compress(plain, path.suffix) if path != plain else plain
        else:
            write_parquet(path, part)
        paths.append(str(path))
    if ".txt" in request.param:
        numbers = [*range(200), *range(50)]
        expected = [f"= {k} =\n{one}" for k, one in zip(numbers, documents, strict=True)]
        return FileSource(paths, PLAIN_FIELDS, r"= \d+ ="), expected
    return FileSource(paths, FIELDS), documents


def test_every_kind_is_read_in_order_and_from_behind_any_batch(made, monkeypatch):
    source, documents = made
    monkeypatch.setattr("palimpsa.text.documents.BATCH_BYTES", 50_000)
    batches = list(source.batches(None))
    assert read(source) == documents
    fractions = [batch.fraction for batch in batches]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    done = 0
    for batch in batches[:: max(1, len(batches) // 8)] + batches[-1:]:
        state = json.loads(json.dumps(batch.after))
        done = sum(len(parse(one, source.fields)) for one in batches[: batches.index(batch) + 1])
        assert read(source, state) == documents[done:]


def test_licences_are_those_of_the_field(made):
    source, _ = made
    found = [one.licence for batch in source.batches(None) for one in parse(batch, source.fields)]
    if source.fields.licence is None:
        assert set(found) == {"mine"}
    else:
        assert found == [*(f"s{k % 3}" for k in range(200)), *(f"s{k % 3}" for k in range(50))]


def test_blank_lines_and_texts_are_left_out_and_the_rest_keeps_its_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": ""}\n{"text": "b"}\n{"text": 3}')
    source = FileSource([str(path)], PLAIN_FIELDS)
    with pytest.raises(ConfigError, match=r"a.jsonl:6: got int in 'text', expected text"):
        read(source)
    path.write_bytes(path.read_bytes()[:-12])
    assert read(FileSource([str(path)], PLAIN_FIELDS)) == ["a", "b"]


def test_folders_and_patterns_stand_for_their_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt", "d.bin"):
        write_jsonl(tmp_path / name, [name])
    assert read(FileSource([str(tmp_path / "*.jsonl")], PLAIN_FIELDS)) == ["a.jsonl", "b.jsonl"]
    assert [path.name for path in FileSource([str(tmp_path)], PLAIN_FIELDS).paths] == ["a.jsonl", "b.jsonl", "c.txt"]


def test_a_plain_file_is_one_document_where_nothing_splits_it(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read(FileSource([str(tmp_path / "a.txt")], PLAIN_FIELDS)) == ["one\n\ntwo\n"]


# Of a source: the file, its content, and what the error says behind the file's path.
WRONG_FILES = {
    "missing": ("a.jsonl", None, ": no such file, expected files ending in .jsonl"),
    "empty": ("a.jsonl", b"", ": is empty, expected text in it"),
    "kind": ("a.csv", b"text\n", ": got a file ending in '.csv', expected files ending in .jsonl"),
}
WRONG_CONTENT = {
    "empty_xz": ("a.jsonl.xz", lzma.compress(b""), ": is empty"),
    "empty_lines": ("a.jsonl", b"\n \r\n", ": is empty"),
    "empty_text": ("a.txt", b" \n", ": is empty"),
    "corrupt_line": ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n{"text": "c"}\n', ":2: got a line that is no JSON"),
    "last_line": ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"', ":3: got a line that is no JSON"),
    "nested": ("a.jsonl", b"[" * 100_000, ":1: got a line that is no JSON"),
    "no_object": ("a.jsonl", b'{"text": "a"}\n["text"]\n', ":2: got list, expected an object with a field 'text'"),
    "bytes": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2: got the byte 0xff at 10, expected UTF-8"),
    "bytes_text": ("a.txt", b"one\ntwo\nthr\xc3(e\n", ":3: got the byte 0xc3 at 3, expected UTF-8"),
    "utf16": ("a.jsonl", '{"text": "a"}'.encode("utf-16"), ":1: got the byte 0xff at 0, expected UTF-8"),
    "half": ("a.jsonl", b'{"text": "a\\ud800"}', r":1: got '\ud800', half a character, at 1"),
    "field": (
        "a.jsonl",
        b'{"text": "a"}\n{"txt": "b", "n": 1}',
        ":2: has no field 'text', expected one of its fields: txt, n",
    ),
    "null": ("a.jsonl", b'{"text": null}', ":1: got NoneType in 'text', expected text"),
    "cut_xz": ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 9_999)[:-30], ": is damaged or cut off"),
    "second_xz": (
        "a.jsonl.xz",
        lzma.compress(b'{"text": "a"}\n') + b"\0" + lzma.compress(b'{"text": "b"}\n')[1:],
        ": is damaged or cut off",
    ),
    "behind_xz": ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n') + b"garbage", ": is damaged or cut off"),
    "cut_gz": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9_999)[:-30], ": is damaged or cut off"),
    "no_xz": ("a.jsonl.xz", b'{"text": "a"}\n', ": is damaged or cut off"),
    "no_gz": ("a.jsonl.gz", b'{"text": "a"}\n', ": is damaged or cut off"),
    "no_zst": ("a.jsonl.zst", b'{"text": "a"}\n', ": is damaged or cut off"),
    "no_parquet": ("a.parquet", b'{"text": "a"}\n', ": is damaged or no parquet file"),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_a_file_that_cannot_be_a_source_is_named_at_once(wrong, tmp_path):
    name, content, said = WRONG_FILES[wrong]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        FileSource([str(tmp_path / name)], PLAIN_FIELDS)
    assert str(error.value).startswith(f"source.files: {tmp_path / name}{said}")


@pytest.mark.parametrize("wrong", WRONG_CONTENT)
def test_wrong_content_is_named_by_file_and_line(wrong, tmp_path):
    name, content, said = WRONG_CONTENT[wrong]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(FileSource([str(tmp_path / name)], PLAIN_FIELDS))
    assert str(error.value).startswith(f"{tmp_path / name}{said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("padding", [0, 4, 200_000])
def test_every_stream_of_an_xz_is_read_with_padding_between_them(padding, tmp_path):
    streams = [lzma.compress(f'{{"text": "{text}"}}\n'.encode()) for text in ("a", "b", "c")]
    (tmp_path / "a.jsonl.xz").write_bytes(bytes(padding).join([*streams, b""]))
    assert read(FileSource([str(tmp_path / "a.jsonl.xz")], PLAIN_FIELDS)) == ["a", "b", "c"]


def test_a_line_is_counted_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("palimpsa.text.documents.BATCH_BYTES", 64)
    path = write_jsonl(tmp_path / "a.jsonl", ["word " * (k % 40) + "." for k in range(500)])
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(ConfigError, match=r"a.jsonl:501: got a line that is no JSON"):
        read(FileSource([str(path)], PLAIN_FIELDS))


def test_a_row_of_parquet_is_counted_and_a_column_is_asked_for(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [*["a"] * 299, None])
    with pytest.raises(ConfigError, match=r"a.parquet:300: got NoneType in 'text', expected text"):
        read(FileSource([str(path)], FIELDS))
    with pytest.raises(ConfigError, match=r"a.parquet: has no column 'body', expected one of text, source, n"):
        read(FileSource([str(path)], Fields("body", None, "")))


def test_bytes_of_a_parquet_column_that_are_no_text_are_named_by_row(tmp_path):
    data = pyarrow.array([*[b"fine"] * 299, b"caf\xe9"], pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(len(data), *data.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a.parquet:300: got the byte 0xe9 at 3, expected UTF-8$"):
        read(FileSource([str(tmp_path / "a.parquet")], PLAIN_FIELDS))


def test_a_parquet_file_without_rows_is_empty(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(ConfigError, match=r"a.parquet: is empty, expected text in it"):
        read(FileSource([str(path)], FIELDS))


def test_nothing_and_twice_the_same_are_refused(tmp_path):
    path = str(write_jsonl(tmp_path / "a.jsonl", ["a"]))
    by_another_name = str(tmp_path / ".." / tmp_path.name)
    for files, said in (
        ([], "got []"),
        ([path, str(tmp_path)], "twice"),
        ([path, by_another_name], "twice"),
        ([str(tmp_path / "*.gz")], "no such file"),
    ):
        with pytest.raises(ConfigError, match=r"source\.files: ") as error:
            FileSource(files, PLAIN_FIELDS)
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="no regular expression"):
        FileSource([path], PLAIN_FIELDS, "(")


def test_a_file_that_became_shorter_is_told(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(ConfigError, match="expected more than the 1000 read before"):
        read(FileSource([str(path)], PLAIN_FIELDS), {"file": 0, "bytes": 1000, "lines": 3})


def test_a_missing_licence_is_a_missing_field():
    batch = Batch("x.jsonl", "line", 7, lines=b'{"text": "a"}')
    with pytest.raises(ConfigError, match=r"x.jsonl:7: has no field 'source'"):
        parse(batch, FIELDS)
