"""Runs flash-linear-attention's own layers and kernels on a CPU, in Triton's interpreter: library_layers.py OUT.

Writes to OUT, for each layer, its weights, an input and its output, and with that gradients where its kernel has a way
back that the interpreter takes. Run it in a process of its own with TRITON_INTERPRET=1, and with no GPU to be seen.
"""

import sys

import torch

D_MODEL, HEADS, K, V = 32, 2, 16, 32
# Not the default of ours, and large enough to be seen.
NORM_EPS = 1e-3
SIZES = {"hidden_size": D_MODEL, "num_heads": HEADS, "norm_eps": NORM_EPS}
EXPANSION = {"expand_k": HEADS * K / D_MODEL, "expand_v": HEADS * V / D_MODEL}
# The other two take their chunked kernels where gradients are asked for, and the interpreter does not take those.
WITH_GRADIENTS = ("gla", "deltanet")


def keep_one_configuration() -> None:
    """Without a GPU nothing can be timed, so there must be nothing to choose."""
    from triton.runtime.autotuner import Autotuner

    all_configurations = Autotuner.__init__

    def one_configuration(self, fn, arg_names, configs, *args, **options):
        all_configurations(self, fn, arg_names, configs[:1], *args, **options)

    Autotuner.__init__ = one_configuration


def main() -> None:
    keep_one_configuration()
    # Only now: importing it makes its kernels, with the configurations that there are.
    from fla.layers import DeltaNet, GatedDeltaNet, GatedLinearAttention
    from fla.layers.simple_gla import SimpleGatedLinearAttention

    torch.manual_seed(0)
    layers = {
        "gated_deltanet": GatedDeltaNet(head_dim=K, expand_v=V / K, **SIZES),
        "deltanet": DeltaNet(**SIZES, **EXPANSION),
        "gla": GatedLinearAttention(use_short_conv=True, **SIZES, **EXPANSION),
        "simple_gla": SimpleGatedLinearAttention(**SIZES, **EXPANSION),
    }
    results = {}
    for name, layer in layers.items():
        # Outside of training and below 65 tokens the layers take their recurrent kernels.
        layer.eval()
        x = torch.randn(2, 9, D_MODEL, requires_grad=name in WITH_GRADIENTS)
        with torch.set_grad_enabled(x.requires_grad):
            y = layer(x)[0]
        gradients = None
        if x.requires_grad:
            y.square().sum().backward()
            gradients = {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
        results[name] = {"weights": layer.state_dict(), "x": x.detach(), "y": y.detach(), "gradients": gradients}
    torch.save(results, sys.argv[1])


if __name__ == "__main__":
    main()
