"""Random arguments of the operator, and test ids that carry their sizes: [B2-T63-H4-K48-V96-f64]."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter. Triton reads this when it is imported, which no test
# module does on its own, and only then: it is set while the tests are collected, for the whole process. What else uses
# Triton here (flash-linear-attention, torch.compile) imports and works as before.
if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported before tests/kernels/conftest.py could choose its interpreter")
    os.environ["TRITON_INTERPRET"] = "1"

from palimpsa.kernels import palimpsa_reference

# A command of its own.
collect_ignore = ["fuzz.py"]

DTYPE_NAMES = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def pytest_make_parametrize_id(config, val, argname):
    if argname == "shape":
        return "-".join(f"{name}{size}" for name, size in zip("BTHKV", val, strict=True))
    if isinstance(val, torch.dtype):
        return DTYPE_NAMES.get(val, str(val).removeprefix("torch."))
    if argname in ("num_tokens", "chunk_size"):
        return f"{'T' if argname == 'num_tokens' else 'C'}{val}"
    return None


class Problem:
    """Arguments of one call. `tensors` holds q, k, v, beta, g, importance_prior, mean and importance by name.

    `groups` is G; V if None.
    """

    def __init__(self, shape, dtype=torch.float64, *, seed=0, beta=True, state=True, num_states=None, groups=None):
        B, T, H, K, V = shape
        generator = torch.Generator().manual_seed(seed)
        state_dtype = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*size, dtype=dtype):
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        def uniform(low, high, *size, dtype=dtype):
            x = torch.rand(size, generator=generator, dtype=torch.float64)
            return (low + (high - low) * x).to(dtype)

        N = B if num_states is None else num_states
        G = V if groups is None else groups
        self.tensors = {
            "q": normal(B, T, H, K),
            "k": normal(B, T, H, K),
            "v": normal(B, T, H, V),
            "beta": uniform(0, 2, B, T, H, G) if beta else None,
            # Windows from 2 to about 1,000 tokens.
            "g": -torch.exp(uniform(-7, -0.4, B, T, H, dtype=state_dtype)),
            "importance_prior": uniform(0.5, 2, H, dtype=state_dtype),
            "mean": normal(N, H, K, V, dtype=state_dtype) if state else None,
            # Also below the prior: nothing in the recurrence forbids it.
            "importance": uniform(0.3, 3, N, H, K, G, dtype=state_dtype) if state else None,
        }

    def __getitem__(self, name):
        return self.tensors[name]

    def to(self, dtype):
        """The same numbers, rounded as they already are, in another dtype."""
        other = Problem.__new__(Problem)
        other.tensors = {name: None if x is None else x.to(dtype) for name, x in self.tensors.items()}
        return other

    @property
    def args(self):
        return tuple(self.tensors[name] for name in ("q", "k", "v", "beta", "g", "importance_prior"))

    @property
    def state(self):
        return None if self["mean"] is None else (self["mean"], self["importance"])

    def run(self, operator, **options):
        """Every output that the operator has, unless `options` say otherwise."""
        wanted = {"output_final_state": True, "output_variance": True, "initial_state": self.state}
        return operator(*self.args, **{**wanted, **options})

    def gradients(self, operator, outputs=("o", "variance", "mean", "importance"), seed=1, **options):
        """Gradients of all arguments of a random projection of the named outputs."""
        leaves = {name: x.detach().clone().requires_grad_() for name, x in self.tensors.items() if x is not None}
        copy = Problem.__new__(Problem)
        copy.tensors = {name: leaves.get(name) for name in self.tensors}
        found = flat(copy.run(operator, **options))
        generator = torch.Generator().manual_seed(seed)
        loss = 0
        for name in ("o", "variance", "mean", "importance"):
            weights = torch.randn(found[name].shape, generator=generator, dtype=torch.float64)
            if name in outputs:
                loss = loss + (found[name].double() * weights).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(x) if grad is None else grad
            for (name, x), grad in zip(leaves.items(), grads, strict=True)
        }


def flat(output):
    """The tensors of a PalimpsaOutput, by name."""
    found = {"o": output.o, "variance": output.variance}
    if output.final_state is not None:
        found |= {"mean": output.final_state.mean, "importance": output.final_state.importance}
    return {name: x for name, x in found.items() if x is not None}


def assert_equal(actual, expected, tolerance):
    """Two dicts of tensors, or two PalimpsaOutputs, to a tolerance relative to the largest entry (at least 1)."""
    if not isinstance(actual, dict):
        actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].shape == x.shape, name
        assert actual[name].dtype == x.dtype, name
        assert torch.isfinite(x).all(), f"the expected {name} is not finite"
        if x.numel():
            error = (actual[name] - x).abs().max().item() / max(1.0, x.abs().max().item())
            assert error <= tolerance, f"{name}: error {error:.2e} > {tolerance:.0e}"


def errors(actual, exact):
    """Largest absolute error of each entry of a dict of tensors."""
    return {name: (actual[name].double() - x).abs().max().item() if x.numel() else 0.0 for name, x in exact.items()}


def outputs_and_gradients(problem, operator, **options):
    """Two dicts, of every output and of every argument's gradient through all of them."""
    found = {}

    def run(*args, **options):
        out = operator(*args, **options)
        found.update({name: x.detach() for name, x in flat(out).items()})
        return out

    return found, problem.gradients(run, **options)


def failures(operator, problem, **options):
    """Outputs and gradients for which err(operator, fp64) > 2 err(reference in that dtype, fp64) + 1e-5."""
    runs = [
        outputs_and_gradients(problem, operator, **options),
        outputs_and_gradients(problem, palimpsa_reference, **options),
        outputs_and_gradients(problem.to(torch.float64), palimpsa_reference, **options),
    ]
    found = {}
    for kind, (actual, reference, truth) in zip(("", "gradient of "), zip(*runs, strict=True), strict=True):
        allowed = errors(reference, truth)
        for name, error in errors(actual, truth).items():
            # Gradients are sums over thousands of terms: the absolute part is for values of size 1.
            size = truth[name].abs().max().item() if truth[name].numel() else 0.0
            limit = 2 * allowed[name] + 1e-5 * max(1.0, size)
            assert actual[name].dtype == reference[name].dtype, name
            if not error <= limit:
                found[kind + name] = f"{error:.2e} > {limit:.2e}"
    return found


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """What has made Triton's interpreter quicker, for all that this process tests from here on; None on a GPU."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield None
        return
    # Here and not above: fuzz.py, a command, imports this file as a module of no package.
    from .interpreter import quicken

    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield patch


@pytest.fixture
def slow_interpreter(quick_interpreter):
    """Takes the quicker parts out again: `with slow_interpreter(): ...`."""
    from .interpreter import quicken

    @contextlib.contextmanager
    def take_out():
        quick_interpreter.undo()
        try:
            yield
        finally:
            quicken(quick_interpreter)

    return take_out


@pytest.fixture(scope="session")
def run_python():
    """Runs code in a fresh interpreter at the root of the repository; returns what it printed."""

    def run(code: str, **environment: str) -> str:
        command = [sys.executable, "-c", code]
        options = {"cwd": Path(__file__).resolve().parents[2], "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(command, env={**os.environ, **environment}, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def untuned_library(monkeypatch):
    """flash-linear-attention's kernels by one configuration each: to try all of them takes minutes."""
    triton = pytest.importorskip("triton")
    for name in ("simple_gla", "gla.chunk", "gated_delta_rule"):
        pytest.importorskip(f"fla.ops.{name}")
    for name, module in list(sys.modules.items()):
        for kernel in list(vars(module).values()) if name.startswith("fla.ops") else ():
            while kernel is not None:
                if isinstance(kernel, triton.runtime.Autotuner):
                    # Two warps: with four some are compiled wrongly (guards.py).
                    one = min(kernel.configs, key=lambda c: (abs(c.num_warps - 2), c.num_stages))
                    monkeypatch.setattr(kernel, "configs", [one])
                kernel = getattr(kernel, "fn", None) if type(kernel).__module__.startswith("triton") else None


@pytest.fixture(name="outputs_and_gradients", scope="session")
def outputs_and_gradients_function():
    return outputs_and_gradients


@pytest.fixture(name="failures", scope="session")
def failures_function():
    return failures


@pytest.fixture(name="Problem", scope="session")
def problem_class():
    return Problem


@pytest.fixture(name="assert_equal", scope="session")
def assert_equal_function():
    return assert_equal


@pytest.fixture(name="flat", scope="session")
def flat_function():
    return flat
