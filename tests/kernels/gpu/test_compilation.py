"""What is compiled for a GPU, and when: in processes of their own, without Triton's interpreter and without a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[3]
# Of any kernel in any mode, over all lengths, batches and numbers of heads.
MOST_VARIANTS = 3
# Of a program, as CUDA's programming guide has it.
HOPPER_SHARED_BYTES = 227 * 1024
# Of what Triton keeps from run to run: that of one version of all kernels is 71 MB.
MOST_KEPT_BYTES = 500 * 2**20


@pytest.fixture
def kept(pytestconfig, tmp_path):
    """A folder for what Triton has compiled, by its source, options and version, which is there the next time too."""
    if getattr(pytestconfig, "cache", None) is None:
        return tmp_path
    folder = Path(pytestconfig.cache.mkdir("triton"))
    if sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > MOST_KEPT_BYTES:
        shutil.rmtree(folder)
    return folder


@pytest.fixture
def printed(tmp_path):
    """What one of this folder's scripts prints, where nothing has been compiled yet but for what `cache` holds."""

    def run(script, cache=tmp_path):
        environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT / "src")}
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, str(Path(__file__).with_name(script))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_every_kernel_compiles_for_a_gpu(printed, kept):
    source = "".join(file.read_text() for file in (ROOT / "kernels/gpu").glob("*.py"))
    # What a host function launches: name[grid](...), or launch(name, ...).
    launched = {a or b for a, b in re.findall(r"(\w+_kernel)\[|launch\(\s*(\w+_kernel)", source)}
    found = [line.split() for line in printed("compile_for_hopper.py", kept).splitlines()]
    assert {name for name, _, _ in found} == launched
    assert max(int(shared) for _, _, shared in found) <= HOPPER_SHARED_BYTES


def test_a_new_length_batch_or_number_of_heads_compiles_nothing(printed):
    found = json.loads(printed("count_variants.py"))
    for mode, variants in found.items():
        # Of wide heads the largest batches need offsets of 64 bits, which are compiled when they come.
        is_never_large = not re.search(r"K96\b", mode)
        for kernel, (after_first_call, after_all) in variants.items():
            assert after_all <= MOST_VARIANTS, (mode, kernel)
            if is_never_large:
                assert after_all == after_first_call, (mode, kernel)
    assert "_gradients_kernel" in found["plain K48 V96"]
    assert "_key_gradients_kernel" in found["one precision K48 V96"]


def test_a_first_call_compiles_its_kernels_side_by_side(printed):
    assert printed("compile_side_by_side.py").splitlines() == ["side by side", "once", "again after a failure"]
