"""The library's candidates for a kernel are compiled side by side: in a process of its own, without a GPU."""

from pathlib import Path

SOURCES = str(Path(__file__).resolve().parents[3] / "src")
SCRIPT = str(Path(__file__).with_name("tune_side_by_side.py"))


def test_candidates_are_compiled_before_the_first_is_timed(run_python):
    code = f"import runpy; runpy.run_path({SCRIPT!r}, run_name='__main__')"
    # Without the interpreter, which would import another kind of kernel.
    found = run_python(code, PYTHONPATH=SOURCES, TRITON_INTERPRET="0")
    assert found.splitlines()[-2:] == ["side by side", "no others"]
