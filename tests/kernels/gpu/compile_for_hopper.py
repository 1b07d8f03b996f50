"""Compiles every Triton kernel that some calls launch for a Hopper GPU, which need not be there, and runs none.

The interpreter takes what the compiler refuses: an argument of 1, for one, is a constant to the compiler alone.
Prints how many versions of each there are.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import importlib
import itertools

import torch
import triton.runtime.jit
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def main() -> None:
    driver.set_active(Hopper())
    compiled = {}
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled[kernel.hash] = self.__name__

    triton.runtime.jit.JITFunction.run = compile_only
    # A build of torch without CUDA says that nothing knows PTX.
    importlib.import_module("palimpsa.kernels.gpu.primitives").HAS_PTX = True
    forward, backward, step, convolution = (
        importlib.import_module(f"palimpsa.kernels.gpu.{name}")
        for name in ("forward", "backward", "step", "convolution")
    )
    backward.num_resident_programs = lambda device: 1584

    # One token, where most sizes are 1; several segments; packed sequences from a state, three tiles of keys.
    for (B, T, H, K, V), packed in (
        ((1, 1, 1, 16, 33), False),
        ((2, 300, 2, 16, 16), False),
        ((1, 300, 1, 112, 16), True),
    ):
        q, k = (torch.ones(B, T, H, K, dtype=torch.bfloat16) for _ in range(2))
        v, beta, do = (torch.ones(B, T, H, V, dtype=torch.bfloat16) for _ in range(3))
        g, prior = torch.zeros(B, T, H), torch.ones(H)
        cu_seqlens = torch.tensor([0, 100, 300]) if packed else None
        state = (torch.ones(2, H, K, V), torch.ones(2, H, K, V)) if packed else (None, None)
        forward.forward(q, k, v, beta, g, prior, 1.0, *state, packed, packed, cu_seqlens)
        others = (do, *state) if packed else (None, None, None)
        args = (q, k, v, beta, g, prior, 1.0, *state, *state, cu_seqlens, do, *others)
        backward.backward(*args)
    token = torch.ones(1, 1, 48), torch.ones(1, 1, 48), torch.ones(1, 1, 96)
    step.step(*token, None, torch.zeros(1, 1), torch.ones(1), *torch.ones(2, 1, 1, 48, 96), 1.0, True)
    # Groups of several tiles, of one, and several groups a tile of which the last is not full.
    for (B, H, K, V), G in (((1, 1, 48, 96), 1), ((2, 16, 48, 96), 1), ((2, 2, 96, 192), 16), ((1, 2, 33, 30), 5)):
        q, k, v, beta = (torch.ones(B, H, size, dtype=torch.bfloat16) for size in (K, K, V, G))
        state = torch.ones(B, H, K, V), torch.ones(B, H, K, G)
        step.step(q, k, v, beta, torch.zeros(B, H), torch.ones(H), *state, 1.0, True)
    for x, bias in ((torch.ones(1, 1, 1), None), (torch.ones(2, 9, 200, dtype=torch.bfloat16), torch.ones(200))):
        weight = torch.ones(x.shape[2], 4)
        convolution.forward(x, weight, bias, [x.shape[2]])
        convolution.backward(x, weight, bias, [x])
    importlib.import_module("palimpsa.kernels.gpu.random_bits").random_bits_kernel(-1, torch.arange(2), 5)
    loss = importlib.import_module("palimpsa.kernels.gpu.cross_entropy")
    for logits in (torch.ones(1, 1), torch.ones(3, 8192, dtype=torch.bfloat16)):
        loss.row_results(logits, torch.zeros(len(logits), dtype=torch.int64), with_gradient=True)
        loss.row_results(logits, torch.zeros(len(logits), dtype=torch.int64), with_gradient=False)
    embedding = importlib.import_module("palimpsa.kernels.gpu.embedding")
    for num_tokens, D, V in ((1, 1, 2), (65536, 128, 8192), (64, 768, 50257)):
        embedding.embedding_gradient(torch.ones(num_tokens, D), torch.zeros(num_tokens, dtype=torch.int64), V)
    for name, kernels in itertools.groupby(sorted(compiled.values())):
        print(name, len(list(kernels)))


if __name__ == "__main__":
    main()
