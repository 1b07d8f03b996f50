"""The random calls of fuzz.py, a command that is run for minutes by hand; here, that it runs."""

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")


def test_a_few_random_calls_are_made_and_none_fails():
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--calls", "3"], cwd=FUZZ.parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 random calls" in done.stdout
