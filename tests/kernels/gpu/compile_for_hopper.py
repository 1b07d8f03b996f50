"""Compiles every Triton kernel that some calls launch for a Hopper GPU, which need not be there, and runs none.

The interpreter takes what the compiler refuses: an argument of 1, for one, is a constant to the compiler alone.
Prints how many versions of each there are, and the most bytes of shared memory that one of them takes.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import torch
from hopper import kernels, pretend


def variants_and_memory(modules):
    """How many versions of each kernel were compiled, and the most shared memory of any."""
    found = {}
    for name, kernel in kernels(modules).items():
        compiled = [version for cache in kernel.device_caches.values() for version in cache[0].values()]
        if compiled:
            found[name] = len(compiled), max(version.metadata.shared for version in compiled)
    return found


def main() -> None:
    modules = pretend()
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
        modules["forward"].forward(q, k, v, beta, g, prior, 1.0, *state, packed, packed, cu_seqlens)
        others = (do, *state) if packed else (None, None, None)
        args = (q, k, v, beta, g, prior, 1.0, *state, *state, cu_seqlens, do, *others)
        modules["backward"].backward(*args)
    # Groups of rows: two warps a program, and four; what takes most of the shared memory, in each dtype.
    for (B, T, H, K, V, G), packed, dtype in (
        ((1, 1, 1, 16, 32, 2), False, torch.bfloat16),
        ((1, 300, 1, 48, 96, 1), True, torch.bfloat16),
        ((1, 300, 1, 96, 192, 12), False, torch.bfloat16),
        ((1, 300, 1, 96, 192, 12), False, torch.float16),
        ((1, 300, 1, 128, 32, 2), False, torch.float32),
        ((1, 300, 1, 128, 96, 1), True, torch.float32),
    ):
        q, k = (torch.ones(B, T, H, K, dtype=dtype) for _ in range(2))
        v, beta, do = (torch.ones(B, T, H, size, dtype=dtype) for size in (V, G, V))
        cu_seqlens = torch.tensor([0, 100, 300]) if packed else None
        state = (torch.ones(2, H, K, V), torch.ones(2, H, K, G)) if packed else (None, None)
        args = (q, k, v, beta, torch.zeros(B, T, H), torch.ones(H), 1.0, *state)
        *_, kept = modules["grouped"].forward(*args, packed, packed, cu_seqlens)
        others = (do, *state) if packed else (None, None, None)
        modules["grouped_backward"].backward(*args, *state, cu_seqlens, kept, do, *others)
    token = torch.ones(1, 1, 48), torch.ones(1, 1, 48), torch.ones(1, 1, 96)
    step = modules["step"].step
    step(*token, None, torch.zeros(1, 1), torch.ones(1), *torch.ones(2, 1, 1, 48, 96), 1.0, True)
    # Groups of several tiles, of one, and several groups a tile of which the last is not full.
    for (B, H, K, V), G in (((1, 1, 48, 96), 1), ((2, 16, 48, 96), 1), ((2, 2, 96, 192), 16), ((1, 2, 33, 30), 5)):
        q, k, v, beta = (torch.ones(B, H, size, dtype=torch.bfloat16) for size in (K, K, V, G))
        state = torch.ones(B, H, K, V), torch.ones(B, H, K, G)
        step(q, k, v, beta, torch.zeros(B, H), torch.ones(H), *state, 1.0, True)
    for x, bias in ((torch.ones(1, 1, 1), None), (torch.ones(2, 9, 200, dtype=torch.bfloat16), torch.ones(200))):
        weight = torch.ones(x.shape[2], 4)
        modules["convolution"].forward(x, weight, bias, [x.shape[2]])
        modules["convolution"].backward(x, weight, bias, [x])
    modules["random_bits"].random_bits_kernel(-1, torch.arange(2), 5)
    for logits in (torch.ones(1, 1), torch.ones(3, 8192, dtype=torch.bfloat16)):
        labels = torch.zeros(len(logits), dtype=torch.int64)
        modules["cross_entropy"].row_results(logits, labels, with_gradient=True, ignore_index=-100, share=1.0)
        modules["cross_entropy"].row_results(logits, labels, with_gradient=True)
        modules["cross_entropy"].row_results(logits, labels, with_gradient=False)
    # A language model's; of one row, whose number a compiler might take for a constant.
    for dtype, V in ((torch.bfloat16, 32_000), (torch.float32, 2**16)):
        logits, labels = torch.ones(1, V, dtype=dtype), torch.zeros(1, dtype=torch.int64)
        modules["cross_entropy"].row_results(logits, labels, with_gradient=True, ignore_index=-100, share=1.0)
        modules["cross_entropy"].row_results(logits, labels, with_gradient=False, ignore_index=-100)
    for num_tokens, D, V in ((1, 1, 2), (65536, 128, 8192), (64, 768, 50257)):
        tokens = torch.zeros(num_tokens, dtype=torch.int64)
        modules["embedding"].embedding_gradient(torch.ones(num_tokens, D), tokens, V)
    for name, (count, shared) in sorted(variants_and_memory(modules).items()):
        print(name, count, shared)


if __name__ == "__main__":
    main()
