"""What a process finds around it ends none of its work: encodings, closed pipes, full disks, settings of matplotlib."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table

from palimpsa.config.process import plain_console, prepare_process

ROOT = Path(__file__).resolve().parents[2]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def start(program: str, folder: Path, **options) -> subprocess.Popen[bytes]:
    """A Python program as the `main` of a script, in `folder`."""
    code = f"from palimpsa.config.process import run_script\ndef main():\n    {program}\nrun_script(main)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **options.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, *options.pop("flags", ()), "-c", code],
        cwd=folder,
        env=environment,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "a ± \N{GREEK SMALL LETTER BETA} \ufffd".encode()),
        ({"PYTHONIOENCODING": "ascii"}, b"a +- \\u03b2 \\ufffd"),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"a +- \\u03b2 \\ufffd"),
        ({"PYTHONIOENCODING": "latin-1"}, b"a \xb1 \\u03b2 \\ufffd"),
        ({"PYTHONIOENCODING": "cp1252"}, b"a \xb1 \\u03b2 \\ufffd"),
        (C_LOCALE, b"a +- \\u03b2 \\ufffd"),
    ],
    ids=str,
)
@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_every_encoding_prints_every_character(tmp_path, environment, expected, flags):
    """A day's sweep was lost to a plus-minus sign in its last table."""
    program = r"import sys; [print('a \xb1 \u03b2 \ufffd', file=file) for file in (sys.stdout, sys.stderr)]"
    out, err = start(program, tmp_path, environment=environment, flags=flags).communicate()
    assert (out.strip(), err.strip()) == (expected, expected)


def test_other_packages_read_their_files_as_utf8_in_any_locale(tmp_path):
    """torch reads its sources, which are no ASCII, as the locale says: no model with a library's kernels began."""
    (tmp_path / "file").write_text("\u00b1", encoding="utf-8")
    out, err = start("print(ascii(open('file').read()))", tmp_path, environment=C_LOCALE).communicate()
    assert (out, err) == (b"'\\xb1'\n", b"")


def test_a_file_name_that_is_no_text_can_be_printed(tmp_path):
    out, err = start("print(b'run\\xff'.decode('utf-8', 'surrogateescape'))", tmp_path).communicate()
    assert (out, err) == (b"run\\udcff\n", b"")


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "printer", ["print", "__import__('palimpsa.config.process').config.process.plain_console().print"]
)
def test_work_goes_on_when_nobody_reads_what_it_prints(tmp_path, flags, printer):
    """`make mqar | head` would have lost the runs that were to come."""
    program = f"[{printer}('x' * 1000) for _ in range(300)]; open('done', 'w').close(); return 3"
    process = start(program, tmp_path, flags=flags)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 3
    assert process.stderr.read() == b""
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_for_the_output_is_told_once(tmp_path):
    with open("/dev/full", "wb") as full:
        process = start("[print('x' * 1000) for _ in range(100)]", tmp_path, stdout=full)
        err = process.communicate()[1]
    assert process.returncode == 0
    assert err.decode() == "stdout: No space left on device; what is printed is lost\n"


def test_no_output_at_all_is_no_error(tmp_path):
    program = "import sys; print(sys.stdout); open('done', 'w').close()"
    process = start(program, tmp_path, stdout=None, preexec_fn=lambda: os.close(1))
    assert (process.wait(60), process.stderr.read(), (tmp_path / "done").exists()) == (0, b"", True)


def test_preparing_twice_is_once(tmp_path):
    program = "from palimpsa.config.process import prepare_process; prepare_process(); print('a \\xb1')"
    out, err = start(program, tmp_path, environment={"PYTHONIOENCODING": "ascii"}).communicate()
    assert (out, err) == (b"a +-\n", b"")


def test_a_stream_that_somebody_put_in_place_stays(monkeypatch, capsys):
    for name in ("MPLBACKEND", "MATPLOTLIBRC"):
        monkeypatch.setenv(name, "")
    stream = sys.stdout
    prepare_process()
    assert sys.stdout is stream


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "nonsense", "TkAgg", "module://no.such"]
)
def test_no_backend_ends_the_import_of_matplotlib(tmp_path, backend):
    """Every notebook exports one, and lightning imports matplotlib: no run began."""
    program = "import matplotlib; print(matplotlib.get_backend())"
    out, err = start(program, tmp_path, environment={"MPLBACKEND": backend}).communicate()
    assert (out.lower(), err) == (b"agg\n", b"")


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"backend: nonsense\nno.such.key: 1\n: : :\n"], ids=["binary", "nonsense"]
)
@pytest.mark.parametrize("place", ["working directory", "MATPLOTLIBRC", "MPLCONFIGDIR"])
def test_no_matplotlibrc_ends_the_import_of_matplotlib(tmp_path, text, place):
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "matplotlibrc").write_bytes(text)
    environment = {} if place == "working directory" else {place: str(folder)}
    where = folder if place == "working directory" else tmp_path
    program = "import matplotlib.style, os; print(os.getcwd())"
    out, err = start(program, where, environment=environment).communicate()
    assert (out.decode().strip(), err) == (str(where), b"")


@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"])
def test_no_style_of_ones_own_ends_the_drawing(tmp_path, variable):
    below = {"HOME": ".config/matplotlib", "XDG_CONFIG_HOME": "matplotlib", "MPLCONFIGDIR": "."}[variable]
    folder = tmp_path / "own" / below / "stylelib"
    folder.mkdir(parents=True)
    (folder / "mine.mplstyle").write_bytes(b"\xff\xfe: 1\n")
    code = "from palimpsa.config.process import prepare_process as p; p(); import matplotlib.pyplot"
    environment = {**os.environ, "HOME": str(tmp_path / "home"), variable: str(tmp_path / "own")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path).returncode == 0


def test_streams_that_are_closed_take_what_is_printed(tmp_path):
    code = "from palimpsa.config.process import prepare_process as p; p(); import sys; print(sys.stdout.write('a'))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["MPLCONFIGDIR", "HOME"])
def test_a_folder_that_cannot_be_written_ends_no_import(tmp_path, name):
    (tmp_path / "file").touch()
    process = start("import matplotlib.style", tmp_path, environment={name: str(tmp_path / "file" / "below")})
    err = process.communicate()[1].decode()
    assert process.returncode == 0, err
    assert "Traceback" not in err


@pytest.mark.parametrize("columns", ["0", "1", "20", "many", "80", "200"])
def test_a_table_in_a_file_is_not_cut(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("a column", "another", "a third")
    table.add_row("9" * 20, "8" * 20, "7" * 20)
    plain_console().print(table)
    out = capsys.readouterr().out
    assert all(number * 20 in out for number in "987")


def test_a_console_prints_text_as_it_is(capsys):
    console = plain_console(width=60)
    for label in ("GLA [ours]", "[red]x[/nope]", ":smile:", "[link=file:///etc]x[/link]"):
        table = Table(label, title=label)
        table.add_row(label)
        console.print(table)
        console.print(label)
        with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
            progress.add_task(label)
        assert capsys.readouterr().out.count(label) >= 4
