"""Counts what calls of many sizes would compile for a Hopper GPU, which need not be there; compiles and runs nothing.

Prints JSON: for each mode, and each kernel, the variants after the first call and after all of them.
"""

# B batch, T time, H heads, K key dim, V value dim
import importlib
import json
import random
import sys

import torch
import triton.runtime.jit
from hopper import kernels, pretend, variants

LENGTHS = (1024, 1040, 1032, 1000, 513, 128, 100, 64, 33, 8, 1, 5000, 4096, 300, 8192)
BATCHES = (1, 8, 16, 64)
HEADS = (1, 2, 16)
NUM_RANDOM = 40
# What else a call is: of each K and V that models have here.
MODES = {
    "plain": {},
    "variance": {"variance": True},
    "state": {"state": True},
    "packed": {"packed": True},
    "float32": {"dtype": torch.float32},
    "one precision": {"G": 1},
    "two precisions and all else": {"G": 2, "variance": True, "state": True, "packed": True},
}
HEAD_DIMS = ((16, 32), (48, 96), (96, 192))


class Compiled:
    """What stands in the place of a compiled kernel."""


def never_compile(self, key, signature, device, constexprs, options, attrs, warmup):
    self.device_caches[device][0][key] = Compiled()
    return self.device_caches[device][0][key]


def sizes(all_of_them=True):
    """All lengths, batches and numbers of heads together, or each alone; and some of any."""
    chosen = random.Random(0)
    found = [(chosen.randint(1, 64), chosen.randint(1, 8192), chosen.randint(1, 16)) for _ in range(NUM_RANDOM)]
    if all_of_them:
        return found + [(B, T, H) for T in LENGTHS for B in BATCHES for H in HEADS]
    return found + [(8, T, 16) for T in LENGTHS] + [(B, 1024, 16) for B in BATCHES] + [(8, 1024, H) for H in HEADS]


def call_operator(
    modules, B, T, H, K, V, device, dtype=torch.bfloat16, variance=False, state=False, packed=False, offset=0, G=None
):
    """The forward and the backward; each q, k, v, beta begins `offset` entries behind an aligned address.

    G: precisions a head; None: one for every row.
    """

    def tensor(*shape, dtype=torch.float32):
        size = torch.Size(shape).numel()
        return torch.empty(size + offset, dtype=dtype, device=device)[offset:].view(shape)

    N = B
    if packed:
        B, T = 1, B * T
    q, k = (tensor(B, T, H, K, dtype=dtype) for _ in range(2))
    v, do = (tensor(B, T, H, V, dtype=dtype) for _ in range(2))
    beta = tensor(B, T, H, G or V, dtype=dtype)
    g, prior = tensor(B, T, H), tensor(H)
    bounds = torch.linspace(0, T, N + 1, device=device).long() if packed else None
    states = (tensor(N, H, K, V), tensor(N, H, K, G or V)) if state else (None, None)
    args, flows = (q, k, v, beta, g, prior, 1.0, *states), (do, do if variance else None, *states)
    if G is None:
        modules["forward"].forward(*args, state, variance, bounds)
        modules["backward"].backward(*args, *states, bounds, *flows)
        return
    *_, kept = modules["grouped"].forward(*args, state, variance, bounds)
    modules["grouped_backward"].backward(*args, *states, bounds, kept, *flows)


def call_others(modules, B, T):
    """What else a model's training step launches, for 3 x 256 channels that are part of a wider projection."""
    x = torch.empty(B, T, 1000, dtype=torch.bfloat16, device="meta")[..., 8:776]
    weight = torch.empty(768, 4, device="meta")
    parts = modules["convolution"].forward(x, weight, None, [256] * 3)
    modules["convolution"].backward(x, weight, None, parts)
    labels = torch.empty(B * T + 1, dtype=torch.int64, device="meta")[1:]
    modules["cross_entropy"].row_results(torch.empty(B * T, 8192, device="meta"), labels, with_gradient=True)
    logits = torch.empty(B * T, 32_000, dtype=torch.bfloat16, device="meta")
    modules["cross_entropy"].row_results(logits, labels, with_gradient=True, ignore_index=-100, share=1.0)
    modules["embedding"].embedding_gradient(torch.empty(B * T, 129, device="meta"), labels, 8192)


def main() -> None:
    triton.runtime.jit.JITFunction._do_compile = never_compile
    modules = pretend()
    found = {}

    def count(name, first, calls):
        importlib.import_module("palimpsa.kernels.gpu.compilation")._compiled.clear()
        for kernel in kernels(modules).values():
            kernel.device_caches.clear()
        first()
        after_first = variants(modules)
        for call in calls:
            call()
        found[name] = {kernel: [after_first.get(kernel, 0), total] for kernel, total in variants(modules).items()}

    for mode, options in MODES.items():
        for K, V in HEAD_DIMS:

            def call(B, T, H, device="meta", offset=0, K=K, V=V, options=options):
                call_operator(modules, B, T, H, K, V, device, offset=offset, **options)

            def first(call=call):
                # On the CPU, because tensors on meta are what the host's part of a call rehearses with.
                call(2, 9, 1, "cpu")

            def unaligned(call=call):
                call(2, 9, 1, "cpu", offset=1)

            # Together for two: that takes most of the time.
            all_of_them = HEAD_DIMS[1] == (K, V) and mode in ("plain", "one precision")
            calls = [unaligned, *(lambda size=size, call=call: call(*size) for size in sizes(all_of_them))]
            count(f"{mode} K{K} V{V}", first, calls)
    calls = [lambda B=B, T=T: call_others(modules, B, T) for B, T, _ in sizes()]
    count("others", lambda: call_others(modules, 2, 9), calls)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
