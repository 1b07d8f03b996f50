"""The Triton path of the operator: in Triton's interpreter, or on the GPU where there is one."""

import importlib

import pytest
import torch

from palimpsa.kernels import PalimpsaOutput, PalimpsaState, palimpsa

# Run by test_compilation.py in processes of their own, from this folder.
collect_ignore = ["compile_for_hopper.py", "compile_side_by_side.py", "count_variants.py", "hopper.py"]


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def choose_triton(monkeypatch):
    monkeypatch.setenv("PALIMPSA_PATH", "triton")


@pytest.fixture
def triton(device):
    """`palimpsa` on the device, with arguments and results on the CPU."""

    def run(*args, initial_state=None, cu_seqlens=None, **options):
        def move(xs, target):
            return tuple(None if x is None else x.to(target) for x in xs)

        state = None if initial_state is None else move(initial_state, device)
        (bounds,) = move((cu_seqlens,), device)
        out = palimpsa(*move(args, device), initial_state=state, cu_seqlens=bounds, **options)
        final = None if out.final_state is None else PalimpsaState(*move(out.final_state, "cpu"))
        return PalimpsaOutput(*move(out[:2], "cpu"), final)

    return run


@pytest.fixture
def no_rehearsals(monkeypatch):
    """A kernel is compiled when it is launched; no other sizes than a call's own are planned for."""
    for name in ("forward", "backward"):
        module = importlib.import_module(f"palimpsa.kernels.gpu.{name}")
        monkeypatch.setattr(module, "compile_once", lambda mode, rehearse: None)


@pytest.fixture
def short_segments(monkeypatch):
    """The backward cuts sequences into segments of 32 tokens, as it does with long ones."""
    module = importlib.import_module("palimpsa.kernels.gpu.backward")
    plan = module.plan_backward
    monkeypatch.setattr(module, "plan_backward", lambda *args: plan(*args)._replace(segment_size=32))
