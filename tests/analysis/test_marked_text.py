"""Text between markers: replaced, everything else left as it is, and every mistake told; nothing committed is stale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from palimpsa.analysis.marked_text import MarkerError, out_of_date, replace_marked
from palimpsa.analysis.text_blocks import TEXT_BLOCKS

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCKS = {"one": lambda: "| a | b |\n", "two": lambda: "first\nsecond"}
BEGIN, END = "<!-- begin one (written by make figures) -->", "<!-- end one -->"


def test_the_text_between_markers_is_replaced_and_all_else_stays():
    text = f"# Title\n\nbefore\n{BEGIN}\nold\n\nold\n{END}\nafter <!-- a comment -->\n"
    new = replace_marked(text, BLOCKS)
    assert new == f"# Title\n\nbefore\n{BEGIN}\n\n| a | b |\n\n{END}\nafter <!-- a comment -->\n"
    assert replace_marked(new, BLOCKS) == new
    # A new marker, with nothing in it.
    assert replace_marked(f"{BEGIN}\n{END}", BLOCKS) == f"{BEGIN}\n\n| a | b |\n\n{END}"


def test_several_blocks_and_only_those_with_a_marker_are_called():
    def unused() -> str:
        raise AssertionError("called")

    two = BEGIN.replace("one", "two"), END.replace("one", "two")
    text = "\n".join([BEGIN, END, "between", two[0], "old", two[1]])
    new = replace_marked(text, {**BLOCKS, "three": unused})
    assert new.split("\n") == [BEGIN, "", "| a | b |", "", END, "between", two[0], "", "first", "second", "", two[1]]
    assert replace_marked("no marker", {"three": unused}) == "no marker"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BEGIN], "README.md:1: begin one without <!-- end one -->"),
        (["", END], "README.md:2: end one without its begin"),
        ([BEGIN, END, BEGIN, END], "README.md:3: begin one for the second time, expected each name once a file"),
        ([BEGIN, BEGIN, END], "README.md:2: begin one within one, which line 1 begins and none ends"),
        ([BEGIN, "<!-- end two -->"], "README.md:2: end two, expected the end of one, which line 1 begins"),
        ([BEGIN.replace("one", "four"), END], "README.md:1: begin four is unknown, expected one of one, two"),
        (
            ["<!-- begin one -->", END],
            "README.md:1: '<!-- begin one -->' is no marker, expected <!-- begin NAME (written",
        ),
        ([BEGIN, f"  {END}"], "README.md:2: '<!-- end one -->' is no marker"),
        ([BEGIN, f"{END} more"], "README.md:2: '<!-- end one --> more' is no marker"),
    ],
    ids=["not-closed", "not-opened", "twice", "nested", "other-end", "unknown", "malformed", "indented", "trailing"],
)
def test_a_wrong_marker_is_named_with_its_line(lines, message):
    with pytest.raises(MarkerError) as caught:
        replace_marked("\n".join(lines), BLOCKS, "README.md")
    assert str(caught.value).startswith(message)


def test_the_stale_files_are_found(tmp_path):
    stale, fresh = tmp_path / "stale.md", tmp_path / "fresh.md"
    stale.write_text(f"{BEGIN}\nold\n{END}\n")
    fresh.write_text(replace_marked(stale.read_text(), BLOCKS))
    assert out_of_date([stale, fresh], BLOCKS) == {stale: fresh.read_text()}


def test_nothing_committed_is_out_of_date(run_script):
    files = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    results = ["--results", str(REPOSITORY / "results")]
    code, out, err = run_script("write_numbers.py", "--check", *results, *map(str, files))
    assert (code, out, err) == (0, "", "")
    assert any("(written by make figures)" in file.read_text() for file in files)


def test_the_script_checks_writes_and_reports(run_script, tmp_path):
    (tmp_path / "README.md").write_text(
        BEGIN.replace("one", "training_speed_table") + "\n" + "<!-- end training_speed_table -->\n"
    )
    results = ["--results", str(REPOSITORY / "results")]
    code, out, _ = run_script("write_numbers.py", "--check", *results)
    assert (code, out) == (1, "README.md: out of date, make figures writes it anew\n")
    assert run_script("write_numbers.py", *results) == (0, "README.md\n", "")
    assert "| Palimpsa-D |" in (tmp_path / "README.md").read_text()
    assert run_script("write_numbers.py", "--check", *results) == (0, "", "")
    # Without the CSV file, and with a marker that nobody knows: one line, and the file as it was.
    before = (tmp_path / "README.md").read_text()
    code, _, err = run_script("write_numbers.py", "--results", "nowhere")
    assert code == 1
    assert err.startswith("error: nowhere/training/steps_nvidia-h200.csv: cannot be read")
    (tmp_path / "README.md").write_text(before.replace("training_speed_table", "speed"))
    code, _, err = run_script("write_numbers.py", *results)
    assert (code, err.count("\n")) == (1, 1)
    assert "begin speed is unknown" in err


@pytest.mark.parametrize("name", sorted(TEXT_BLOCKS))
def test_every_block_is_a_table_or_sentences_of_the_committed_results(name):
    lines = TEXT_BLOCKS[name](REPOSITORY / "results").split("\n")
    assert all(line == line.rstrip() and "nan" not in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) <= 1
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))


def test_the_script_needs_no_torch():
    command = [sys.executable, "-X", "importtime", "scripts/write_numbers.py", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert "| torch\n" not in done.stderr
