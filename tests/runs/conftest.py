"""The synthetic run directories of tests/analysis, for the tests of what reads them."""

import importlib.util
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "analysis" / "conftest.py"
spec = importlib.util.spec_from_file_location("synthetic_runs", SOURCE)
assert spec is not None
assert spec.loader is not None
synthetic_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(synthetic_runs)
run_writer, add_run = synthetic_runs.run_writer, synthetic_runs.add_run
