"""Checks against float64, and the clocks: time, memory, bandwidth."""

# B batch, T time, H heads, K key dim, V value dim
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsa.benchmark.base import WrongResultError
from palimpsa.benchmark.operators import Inputs, Operator, Shape

# Of the small problem: one chunk's multiple and more, and an odd length.
CHECK_LENGTHS = (200, 131)
CHECK_STEPS = 17
# A Hopper-class multiprocessor's special-function units, and the clock in Hz where the device does not tell its own.
RECIPROCALS_PER_CLOCK = 16
DEFAULT_CLOCK = 1.75e9
# Calls that are on their way to a GPU before it begins with the first, at most.
CALLS_AHEAD = 10
# Clears the second-level cache of any GPU.
FLUSHED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Errors:
    """Relative errors against float64, the worst over outputs and over gradients; None where there are none."""

    forward: float
    backward: float | None = None

    def check(self, name: str, tolerance: float) -> None:
        """Raises WrongResultError above `tolerance`, or where an error is not a number."""
        for what, error in (("outputs", self.forward), ("gradients", self.backward)):
            if error is not None and not error <= tolerance:
                raise WrongResultError(
                    f"{name}: relative error {error:.2g} of its {what} against float64, expected at most "
                    f"{tolerance:g}; not timed"
                )


def relative_error(x: Tensor | None, expected: Tensor) -> float:
    """||x - expected|| / ||expected|| in float64; None, a gradient that never came, counts as zeros."""
    off = (expected if x is None else x.double() - expected).norm().item()
    # The decay's gradient is 0 where there is nothing to decay yet.
    return off and off / expected.norm().item() if expected.any() else off


def _gradients(x: Inputs, o: Tensor, output_gradient: Tensor) -> dict[str, Tensor | None]:
    gradients = torch.autograd.grad(o, list(x.values()), output_gradient, allow_unused=True)
    return dict(zip(x, gradients, strict=True))


def check_operator(operator: Operator, K: int, V: int, dtype: torch.dtype, generator: torch.Generator) -> Errors:
    """The output and every gradient on two small problems (B = H = 2), against the definition in float64."""
    forward, backward = [], []
    for T in CHECK_LENGTHS:
        x = operator.inputs(Shape("check", 2, T, 2, K, V), dtype, generator)
        exact = _float64(x)
        o, expected = operator.forward(x), operator.reference(exact)[0]
        # That of half the squared distance to a random target. A random one alone would make the prior's gradient,
        # a sum over everything, small by chance, and its relative error large.
        target = torch.randn(o.shape, device=o.device, generator=generator) * expected.square().mean().sqrt()
        output_gradient = (expected - target).detach().to(o.dtype)
        forward.append(relative_error(o, expected))
        found = _gradients(x, o, output_gradient)
        for name, gradient in _gradients(exact, expected, output_gradient.double()).items():
            assert gradient is not None, name
            backward.append(relative_error(found[name], gradient))
    return Errors(_worst(forward), _worst(backward))


@torch.no_grad()
def check_prefill(operator: Operator, K: int, V: int, dtype: torch.dtype, generator: torch.Generator) -> Errors:
    """The output and the final state on two small problems, against the definition in float64."""
    errors = []
    for T in CHECK_LENGTHS:
        x = operator.inputs(Shape("check", 2, T, 2, K, V), dtype, generator)
        o, state = operator.prefill(x)
        expected, expected_state = operator.reference(_float64(x))
        errors += [relative_error(*pair) for pair in zip((o, *state), (expected, *expected_state), strict=True)]
    return Errors(_worst(errors))


@torch.no_grad()
def check_decode(operator: Operator, K: int, V: int, dtype: torch.dtype, generator: torch.Generator) -> Errors:
    """The outputs of single steps and the state after them, against the definition in float64."""
    x = operator.inputs(Shape("check", 3, CHECK_STEPS, 2, K, V), dtype, generator)
    state, outputs = operator.start(x), []
    for t in range(CHECK_STEPS):
        o, state = operator.step(operator.token(x, t), state)
        outputs.append(o.reshape(3, 1, 2, V))
    expected, expected_state = operator.reference(_float64(x))
    pairs = zip((torch.cat(outputs, dim=1), *state), (expected, *expected_state), strict=True)
    return Errors(_worst([relative_error(*pair) for pair in pairs]))


def check_batch(operator: Operator, x: Inputs) -> Errors:
    """The last half of the batch within the whole and alone, at the sizes that are timed: the same within rounding.

    An index that overflows, or a row that reads its neighbour's, shows here. A batch of one has nothing to compare.
    """
    B = x["q"].shape[0]
    if B == 1:
        return Errors(0.0)
    names = [name for name in x if name != "importance_prior"]
    half = {name: (x[name][B // 2 :] if name in names else x[name]).detach().requires_grad_() for name in x}
    whole, alone = operator.forward(x), operator.forward(half)
    output_gradient = whole.detach()
    of_whole = _gradients(x, whole, output_gradient)
    of_half = _gradients(half, alone, output_gradient[B // 2 :])
    errors = []
    for name in names:
        expected = of_half[name]
        gradient = of_whole[name]
        if expected is None or gradient is None:
            raise WrongResultError(f"no gradient reaches {name}")
        errors.append(relative_error(gradient[B // 2 :], expected.double()))
    return Errors(relative_error(whole[B // 2 :], alone.double()), _worst(errors))


def _float64(x: Inputs) -> Inputs:
    return {name: value.detach().double().requires_grad_() for name, value in x.items()}


def _worst(errors: list[float]) -> float:
    # max() would pass over a NaN that is not the first.
    return max(errors) if all(error == error for error in errors) else float("nan")


@dataclass(frozen=True)
class Clock:
    """Times a call on one device.

    Args:
        device: "cuda" or "cpu".
        warmup_ms, repeat_ms: how long it runs before, and while it is measured.
    """

    device: str
    warmup_ms: float
    repeat_ms: float

    def median_ms(self, call: Callable[[], object], leaves: Iterable[Tensor] = ()) -> float:
        """Median time of a call in ms; gradients of `leaves` are dropped before each. On a GPU by CUDA events, with
        the L2 cache cleared before each call."""
        leaves = list(leaves)
        if self.device == "cuda":
            from triton.testing import do_bench

            # One more time in ms is declared as int, and any number will do.
            ms = do_bench(call, self.warmup_ms, self.repeat_ms, grad_to_none=leaves, return_mode="median")  # pyright: ignore
            return float(ms)  # pyright: ignore[reportArgumentType]
        self._run(call, leaves, self.warmup_ms)
        return statistics.median(self._run(call, leaves, self.repeat_ms))

    def device_ms(self, call: Callable[[], object], leaves: Iterable[Tensor] = ()) -> float | None:
        """Median time of a call in ms of the device alone, without what the host takes to bring its kernels there;
        gradients of `leaves` are dropped and the L2 cache is cleared before each. None on a CPU.

        Args:
            call: asked for before by `median_ms`, so that nothing is compiled or tuned; does not wait for the device.

        Raises:
            RuntimeError: the host does not get ahead of the device.
        """
        if self.device != "cuda":
            return None
        leaves, flushed = list(leaves), torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=self.device)
        num_cycles, num_calls = 10_000_000, CALLS_AHEAD
        for _ in range(8):
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(num_calls)]
            torch.cuda.synchronize()
            # The device is busy with nothing until all calls are on their way.
            torch.cuda._sleep(num_cycles)
            for begin, end in events:
                for leaf in leaves:
                    leaf.grad = None
                flushed.zero_()
                begin.record()
                call()
                end.record()
            is_ahead = not events[0][0].query()
            torch.cuda.synchronize()
            if is_ahead:
                return statistics.median(begin.elapsed_time(end) for begin, end in events)
            # A slow host; or more kernels than can wait for a device at once, so that the host waits for a place.
            num_cycles, num_calls = 2 * num_cycles, max(1, num_calls // 2)
        raise RuntimeError("the device was free before the host had called it: a call waits for it")

    @staticmethod
    def _run(call: Callable[[], object], leaves: list[Tensor], budget_ms: float) -> list[float]:
        times: list[float] = []
        while not times or sum(times) < budget_ms:
            for leaf in leaves:
                leaf.grad = None
            begun = time.perf_counter()
            call()
            times.append((time.perf_counter() - begun) * 1e3)
        return times

    def copy_gb_s(self, num_bytes: int) -> tuple[float, float]:
        """ms of a copy within the device's memory of `num_bytes`, and its bandwidth: bytes read and written, GB/s."""
        source = torch.ones(num_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        ms = self.median_ms(lambda: target.copy_(source))
        return ms, 2 * num_bytes / ms / 1e6


def forward_backward(operator: Operator, x: Inputs, output_gradient: Tensor) -> None:
    """One training call; gradients land in the `.grad` of `x`."""
    operator.forward(x).backward(output_gradient)


def peak_memory_mib(operator: Operator, x: Inputs, output_gradient: Tensor) -> float | None:
    """What a forward and backward needs at its peak beyond the inputs, all gradients included; None on a CPU."""
    if not output_gradient.is_cuda:
        return None
    for leaf in x.values():
        leaf.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    # A copy, so that the output's gradient counts too.
    forward_backward(operator, x, output_gradient.clone())
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def limit_ps_per_element(num_multiprocessors: int, clock: float = DEFAULT_CLOCK) -> float:
    """Picoseconds an element of a forward that takes one reciprocal for each: no exact Palimpsa can be faster, unless
    elements share reciprocals.

    Args:
        clock: Hz.

    >>> round(limit_ps_per_element(132), 2)
    0.27
    """
    return 1e12 / (RECIPROCALS_PER_CLOCK * num_multiprocessors * clock)


def device_limit() -> tuple[float, str]:
    """`limit_ps_per_element` of the current GPU, and what it was computed from."""
    properties = torch.cuda.get_device_properties()
    # In kHz, and not there in every version of torch.
    clock = getattr(properties, "clock_rate", 0) * 1e3 or DEFAULT_CLOCK
    basis = f"limit: {properties.multi_processor_count} SMs, {clock / 1e9:.2f} GHz"
    return limit_ps_per_element(properties.multi_processor_count, clock), basis
