"""A Hopper GPU that is not there: Triton compiles for it, and launches nothing. For scripts of their own processes."""

import importlib

import triton.runtime.jit
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

MODULES = (
    "forward",
    "backward",
    "grouped",
    "grouped_backward",
    "step",
    "convolution",
    "cross_entropy",
    "embedding",
    "random_bits",
)


class Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def pretend():
    """The modules of palimpsa.kernels.gpu by name, on a GPU of 132 multiprocessors whose launches compile and end."""
    driver.set_active(Hopper())
    run = triton.runtime.jit.JITFunction.run
    triton.runtime.jit.JITFunction.run = lambda self, *args, grid, warmup, **options: run(
        self, *args, grid=grid, warmup=True, **options
    )
    # A build of torch without CUDA says that nothing knows PTX.
    importlib.import_module("palimpsa.kernels.gpu.primitives").HAS_PTX = True
    modules = {name: importlib.import_module(f"palimpsa.kernels.gpu.{name}") for name in MODULES}
    modules["backward"].num_resident_programs = lambda: 1584
    return modules


def kernels(modules):
    """Triton's kernels of the modules, by name."""
    return {
        name: kernel
        for module in modules.values()
        for name, kernel in vars(module).items()
        if isinstance(kernel, triton.runtime.jit.JITFunction)
    }


def variants(modules):
    """How many variants are compiled of each kernel that was launched, by name."""
    counts = {
        name: sum(len(cache[0]) for cache in kernel.device_caches.values()) for name, kernel in kernels(modules).items()
    }
    return {name: count for name, count in counts.items() if count}
