"""How a first call compiles for a Hopper GPU, which need not be there: side by side, once, again after a failure.

The compilers wait and fail on demand, and make nothing. Prints a line for each check that passed.
"""

import importlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hopper import kernels, pretend, variants


def main() -> None:
    modules = pretend()
    compilation = importlib.import_module("palimpsa.kernels.gpu.compilation")
    q, v = torch.ones(1, 100, 2, 16), torch.ones(1, 100, 2, 32)
    g, prior = torch.zeros(1, 100, 2), torch.ones(2)
    forward_kernels = {"_prepare_kernel", "scan_kernel", "_read_kernel"}

    def forward():
        modules["forward"].forward(q, q, v, v, g, prior, 1.0, None, None, False, False, None)

    def start_anew(compiler):
        """`compiler` is told which kernel it is to compile."""
        compilation._compiled.clear()
        for name, kernel in kernels(modules).items():
            kernel.device_caches.clear()
            # Triton asks for the compiler when it meets a device.
            kernel.device_caches[0]
            kernel.compile = lambda *args, name=name, **options: compiler(name) or object()

    # Passes where two are compiled at a time, and not where they are one after the other.
    both_are_there = threading.Event()
    waiting = Counter()

    def wait_for_another(name):
        waiting[name] += 1
        if len(waiting) >= 2:
            both_are_there.set()
        assert both_are_there.wait(timeout=300), f"{name} was compiled alone"

    start_anew(wait_for_another)
    forward()
    assert set(waiting) == forward_kernels, waiting
    waiting.clear()
    both_are_there.clear()
    start_anew(wait_for_another)
    modules["grouped"].forward(q, q, v, v[..., :1], g, prior, 1.0, None, None, False, False, None)
    assert set(waiting) == {"_chunk_sums_kernel", "_carry_kernel", "_accumulate_kernel", "_attend_kernel"}, waiting
    print("side by side")

    compiled = Counter()
    start_anew(lambda name: compiled.update([name]))
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(forward) for _ in range(4)]:
            done.result()
    once = Counter(variants(modules))
    assert set(once) == forward_kernels, once
    assert compiled == once, (compiled, once)
    forward()
    assert compiled == once, compiled
    print("once")

    def fail(name):
        if name == "_read_kernel":
            raise OSError("the disk is full")

    start_anew(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is full"):
            forward()
    for kernel in kernels(modules).values():
        kernel.compile = lambda *args, **options: object()
    forward()
    assert Counter(variants(modules)) == once
    print("again after a failure")


if __name__ == "__main__":
    main()
