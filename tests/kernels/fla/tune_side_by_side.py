"""How the library's autotuner compiles its candidates for a Hopper GPU, which need not be there. Prints what passed.

The compilers wait and fail on demand, and make nothing; the clock gives every candidate a time of its own.
"""

import sys
import threading
from collections import Counter
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "gpu"))
from hopper import pretend


def main() -> None:
    # First, since the library asks at once for the name of a GPU that it finds.
    from fla.ops.utils.cumsum import chunk_local_cumsum_scalar_kernel

    pretend()
    import triton
    import triton.language as tl
    from triton.compiler.errors import CompileTimeAssertionFailure

    from palimpsa.kernels.fla.tuning import compile_candidates_side_by_side

    for _ in range(2):
        compile_candidates_side_by_side()
    autotuner = chunk_local_cumsum_scalar_kernel.fn
    kernel, candidates = autotuner.fn, autotuner.configs
    both_are_there, compiled, timed = threading.Event(), Counter(), []
    fails = candidates[1].num_warps

    def compiler(source, options, **others):
        compiled[options["num_warps"]] += 1
        if len(compiled) >= 2:
            both_are_there.set()
        assert both_are_there.wait(timeout=300), "a candidate was compiled alone"
        if options["num_warps"] == fails:
            raise CompileTimeAssertionFailure("not this one")
        return object()

    def clock(call, quantiles):
        call()
        timed.append(len(compiled))
        # The later the faster.
        return [1 / len(timed)] * 3

    def tune(kernel, autotuner, **more):
        kernel.device_caches.clear()
        # Triton asks for the compiler when it meets a device.
        kernel.device_caches[0]
        kernel.compile = compiler
        autotuner.cache_results = False
        autotuner._do_bench = clock
        autotuner.cache.clear()
        compiled.clear()
        timed.clear()
        x = torch.ones(1, 64, 2)
        autotuner.run(x, x.clone(), 1.0, None, None, 64, B=1, H=2, BT=64, grid=(1,), warmup=False, **more)

    more = {"REVERSE": False, "HAS_SCALE": True, "IS_VARLEN": False}
    tune(kernel, autotuner, **more)
    assert len(candidates) > 2
    assert compiled == {config.num_warps: 1 for config in candidates}, compiled
    # All before the first was timed, and the one that cannot be compiled took none with it.
    assert timed == [len(candidates)] * len(candidates), timed
    assert autotuner.best_config is candidates[-1], autotuner.best_config
    print("side by side")

    @triton.autotune([triton.Config({}, num_warps=warps) for warps in (1, 2)], key=["T"])
    @triton.jit
    def others(x, y, scale, bounds, indices, T, B: tl.constexpr, H: tl.constexpr, BT: tl.constexpr):
        tl.store(y, tl.load(x))

    both_are_there.set()
    fails = None
    tune(others.fn, others)
    assert timed == [1, 2], timed
    print("no others")


if __name__ == "__main__":
    main()
