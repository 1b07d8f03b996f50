"""Kernels of flash-linear-attention that are compiled wrongly are kept from running."""

from pathlib import Path

SOURCES = str(Path(__file__).resolve().parents[3] / "src")


def test_configurations_of_the_library_that_are_compiled_wrongly_are_left_out(run_python):
    code = """
from fla.ops.common.chunk_o import chunk_bwd_kernel_dqkwg as kernel
from palimpsa.kernels.fla.guards import keep_right_configurations
keep_right_configurations(kernel.fn)
for BK in (16, 32, 64):
    print(BK, {c.num_warps >= 4 for c in kernel.fn.early_config_prune(kernel.fn.configs, {}, BK=BK)})
"""
    # Without the interpreter, which would import another kind of kernel.
    found = run_python(code, PYTHONPATH=SOURCES, TRITON_INTERPRET="0").split("\n")[-4:-1]
    assert found == ["16 {False}", "32 {False}", "64 {False, True}"]
