"""Random calls of the operator against the reference in float64, for as long as one likes; ends with 1 if any fails.

python tests/kernels/fuzz.py --calls 2000                       on the CPU: every exact path, in float64
python tests/kernels/fuzz.py --device cuda --minutes 10         on a GPU: the Triton kernels, in every dtype

A process compiles for one K, V, G and dtype, and draws everything else for each call. Prints the arguments of every
call that fails.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from conftest import DTYPE_NAMES, Problem, errors, flat, outputs_and_gradients
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from test_groups import repeated

from palimpsa.kernels import (
    PalimpsaOutput,
    PalimpsaState,
    palimpsa,
    palimpsa_chunked,
    palimpsa_reference,
    palimpsa_step,
)

# Of one process.
CALLS_EACH = 40
# Of a number in a dtype, relative to it.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# Relative to the largest entry: of an output, and of a gradient.
FLOAT64_BOUNDS = (1e-10, 1e-9)


def draw_sizes(draw: random.Random, device: str) -> dict[str, Any]:
    """K, V, G and a dtype."""
    if device == "cpu":
        K, V = draw.choice([1, draw.randint(1, 9), 16, 40]), draw.choice([1, 2, 6, 8, 12, 32, draw.randint(1, 13), 0])
        dtype = "f64"
    else:
        K = draw.choice([16, 32, 48, 64, 96, 128, draw.randint(1, 130)])
        V = draw.choice([16, 32, 48, 64, 96, 128, 192, draw.randint(1, 200)])
        dtype = draw.choice(["bf16", "bf16", "f16", "f32"])
    divisors = [G for G in range(1, V + 1) if V % G == 0] or [0]
    wide = [G for G in divisors if G and V // G >= 16]
    # One precision a head, and groups wide enough for products of matrices, as often as all others.
    G = draw.choice([draw.choice(divisors), draw.choice(wide or divisors), divisors[0]])
    return {"K": K, "V": V, "G": G, "dtype": dtype}


def draw_call(draw: random.Random, sizes: dict[str, Any], device: str) -> tuple[dict[str, Any], Problem]:
    """The rest of a call, as it is printed, and its arguments."""
    longest = 140 if device == "cpu" else 400
    B, T, H = (
        draw.randint(1, 3),
        draw.choice([1, 2, 64, 65, *(draw.randint(2, longest) for _ in range(6))]),
        draw.choice([1, 2, 3]),
    )
    if device == "cpu" and draw.random() < 0.1:
        B, T = draw.choice([(0, T), (B, 0)])
    state = draw.random() < 0.5
    beta = draw.random() < 0.8
    bounds = None
    if draw.random() < 0.3:
        B, N = 1, draw.randint(1, 4)
        bounds = [0, *sorted(draw.randint(0, T) for _ in range(N - 1)), T]
    # Without both there is a precision for every row.
    beta = beta or not state
    call = {
        **sizes,
        **{"B": B, "T": T, "H": H, "state": state, "beta": beta, "bounds": bounds, "seed": draw.randrange(2**31)},
        **{
            "decays": draw.choice(["usual", "usual", "resets", "none", "mixed"]),
            "prior": draw.choice([None, None, 0.1, 10.0]),
        },
        **{"scale": draw.choice([None, 1.0, -0.7]), "chunk_size": draw.choice([None, 1, 3, 16])},
    }
    problem = Problem(
        (B, T, H, sizes["K"], sizes["V"]), DTYPES[sizes["dtype"]], seed=call["seed"], beta=beta, state=state,
        num_states=bounds and len(bounds) - 1, groups=sizes["G"],
    )  # fmt: skip
    g, z = problem["g"], torch.rand(B, T, H, generator=torch.Generator().manual_seed(call["seed"]))
    if call["decays"] == "resets":
        g[z < 0.1] = -math.inf
    elif call["decays"] == "none":
        g.zero_()
    elif call["decays"] == "mixed":
        g[z < 0.2] = 0
        g[z > 0.9] = -math.inf
        g[(z > 0.5) & (z < 0.6)] = -50
    if call["prior"] is not None:
        problem["importance_prior"].fill_(call["prior"])
    return call, problem


def options_of(call: dict[str, Any]) -> dict[str, Any]:
    bounds = None if call["bounds"] is None else torch.tensor(call["bounds"])
    return {"scale": call["scale"], "cu_seqlens": bounds}


def on_gpu(*args: Any, initial_state: Any = None, cu_seqlens: Any = None, **options: Any) -> PalimpsaOutput:
    """`palimpsa` there, with arguments and results here."""

    def move(xs: Any, target: str) -> tuple[Any, ...]:
        return tuple(None if x is None else x.to(target) for x in xs)

    state = None if initial_state is None else move(initial_state, "cuda")
    (bounds,) = move((cu_seqlens,), "cuda")
    out = palimpsa(*move(args, "cuda"), initial_state=state, cu_seqlens=bounds, **options)
    return PalimpsaOutput(*move(out[:2], "cpu"), PalimpsaState(*move(out.final_state, "cpu")))


def by_steps(problem: Problem, scale: float | None, device: str) -> dict[str, torch.Tensor]:
    """Every output of the call, token by token."""
    q, k, v, beta, g, prior = (None if x is None else x.to(device) for x in problem.args)
    B, T, H, K = q.shape
    if problem.state is None:
        importance = prior[:, None, None].expand(B, H, K, beta.shape[-1]).clone()
        state = PalimpsaState(prior.new_zeros(B, H, K, v.shape[-1]), importance)
    else:
        state = PalimpsaState(*(x.to(device, copy=True) for x in problem.state))
    outs = []
    for t in range(T):
        q_t, k_t, v_t, beta_t, g_t = (None if x is None else x[:, t] for x in (q, k, v, beta, g))
        outs.append(palimpsa_step(q_t, k_t, v_t, beta_t, g_t, prior, state, scale=scale, output_variance=True))
    o, variance = (torch.stack([getattr(out, name) for out in outs], 1) for name in ("o", "variance"))
    return {name: x.cpu() for name, x in flat(PalimpsaOutput(o, variance, state)).items()}


def unequal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float) -> dict[str, str]:
    """What differs by more than `bound` times the largest entry, and times 1."""
    found = {}
    for name, x in expected.items():
        y = actual[name]
        if y.shape != x.shape or y.dtype != x.dtype:
            found[name] = f"{y.dtype} {tuple(y.shape)}, expected {x.dtype} {tuple(x.shape)}"
        elif x.numel() and not (y - x).abs().max() <= bound * max(1.0, x.abs().max().item()):
            found[name] = f"{(y - x).abs().max().item():.2e}"
    return found


def check_on_cpu(call: dict[str, Any], problem: Problem) -> dict[str, str]:
    options, found = options_of(call), {}

    def chunked(*args: Any, **options: Any) -> PalimpsaOutput:
        return palimpsa_chunked(*args, chunk_size=call["chunk_size"], **options)

    for name, operator in (("reference", palimpsa_reference), ("chunked", chunked)):
        actual, expected = flat(problem.run(operator, **options)), flat(problem.run(repeated, **options))
        of_outputs = unequal(actual, expected, FLOAT64_BOUNDS[0])
        of_gradients = unequal(
            problem.gradients(operator, **options), problem.gradients(repeated, **options), FLOAT64_BOUNDS[1]
        )
        found |= {f"{name}: {key}": text for key, text in of_outputs.items()}
        found |= {f"{name}: gradient of {key}": text for key, text in of_gradients.items()}
    if call["bounds"] is None and problem["v"].numel():
        expected = flat(problem.run(repeated, **options))
        of_steps = unequal(by_steps(problem, call["scale"], "cpu"), expected, FLOAT64_BOUNDS[0])
        found |= {f"step: {key}": text for key, text in of_steps.items()}
    return found


def sizes_of_terms(problem: Problem, gradients: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of what the gradients of g, the prior and the initial importance are sums of, which may be nothing.

    v dv, q dq and beta dbeta of the tokens, as if their signs were random, and those of the initial state.
    """
    squares = sum(
        (problem[name] * gradients[name]).abs().sum(-1).square() for name in ("q", "v", "beta") if name in gradients
    )
    of_tokens = squares.sum(1).max().sqrt().item()
    of_state = sum(
        (problem[name] * gradients[name]).abs().sum((2, 3)).max().item()
        for name in ("mean", "importance")
        if name in gradients and gradients[name].numel()
    )
    size = of_tokens + of_state
    sizes = {"g": size, "importance_prior": len(squares) * size / problem["importance_prior"].min().item()}
    if problem.state is not None and problem["mean"].numel():
        # Through the mean that it was multiplied with, of all its rows.
        of_rows = (problem["mean"] * gradients["mean"]).abs().unflatten(-1, (problem["importance"].shape[-1], -1))
        sizes["importance"] = (of_rows.sum(-1) / problem["importance"]).max().item()
    return sizes


def check_on_gpu(call: dict[str, Any], problem: Problem) -> dict[str, str]:
    """What is more wrong than design allows: twice the reference in that dtype, and 1e-5.

    The reference errs little in a call of few entries, by luck, and where nothing is left of large terms. So two
    roundings of the largest entry, or of those terms, are allowed too: what goes into products is rounded once.
    """
    options, found = options_of(call), {}
    exact = problem.to(torch.float64)
    runs = [outputs_and_gradients(problem, operator, **options) for operator in (on_gpu, palimpsa_reference)]
    truths = outputs_and_gradients(exact, palimpsa_chunked, **options)
    unit = ROUNDING[problem["q"].dtype]
    for kind, actual, reference, truth in zip(("", "gradient of "), *runs, truths, strict=True):
        terms = sizes_of_terms(exact, truth) if kind else {}
        allowed = errors(reference, truth)
        for name, error in errors(actual, truth).items():
            size = truth[name].abs().max().item() if truth[name].numel() else 0.0
            size = max(size, terms.get(name, 0.0))
            is_state = name in ("mean", "importance") and not kind
            # What states are made of goes in as two bfloat16.
            rounding = min(2 * unit, 2**-14) if is_state else 2 * unit
            limit = 2 * allowed[name] + 1e-5 * max(1.0, size) + rounding * size
            if actual[name].dtype != reference[name].dtype or not error <= limit:
                found[kind + name] = f"{error:.2e} > {limit:.2e} in {actual[name].dtype}, size {size:.1e}"
    if call["bounds"] is None and call["T"] <= 70:
        for name, x in by_steps(problem, call["scale"], "cuda").items():
            # Steps round what they give, and nothing else.
            rounding = 0.0 if name in ("mean", "importance") else unit
            lost = ((x.double() - truths[0][name]).abs() - rounding * truths[0][name].abs()).max().item()
            if not lost <= 1e-5 * max(1.0, truths[0][name].abs().max().item()):
                found[f"step: {name}"] = f"{lost:.2e} beyond its rounding"
    return found


def run_calls(seed: int, device: str, num_calls: int) -> None:
    """Of one process: prints JSON, one line a call: its arguments, and what failed of it."""
    torch.set_num_threads(1)
    os.environ["PALIMPSA_PATH"] = "triton" if device == "cuda" else "chunked"
    draw = random.Random(seed)
    sizes = draw_sizes(draw, device)
    for _ in range(num_calls):
        call, problem = draw_call(draw, sizes if device == "cuda" else draw_sizes(draw, device), device)
        try:
            found = (check_on_gpu if device == "cuda" else check_on_cpu)(call, problem)
        except Exception as error:
            # A finding like any other, with its arguments; the calls behind it still run.
            found = {type(error).__name__: str(error)[:300]}
        print(json.dumps({"call": call, "failures": found}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--calls", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--minutes", type=float, default=10.0, help="or start none after so many minutes (10)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first process; the next ones follow (0)")
    parser.add_argument("--only", action="store_true", help="run that one process's calls here, and print them")
    args = parser.parse_args()
    if args.only:
        run_calls(args.seed, args.device, min(args.calls, CALLS_EACH))
        return 0
    until = time.monotonic() + 60 * args.minutes
    counts: Counter[str] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = args.calls if args.calls < 10**9 else None
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress, ThreadPoolExecutor(args.jobs) as executor:
        task = progress.add_task("calls", total=total)

        def work(first: int) -> None:
            for seed in itertools.count(args.seed + first, args.jobs):
                left = min(CALLS_EACH, args.calls - (seed - args.seed) * CALLS_EACH)
                if left <= 0 or time.monotonic() > until:
                    return
                command = [sys.executable, __file__, "--only", "--seed", str(seed), "--device", args.device]
                command += ["--calls", str(left)]
                worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                # A call may take minutes to compile.
                timer = threading.Timer(until - time.monotonic(), worker.kill)
                timer.start()
                num_calls = 0
                for line in worker.stdout or ():
                    report, num_calls = json.loads(line), num_calls + 1
                    progress.advance(task)
                    counts["calls"] += 1
                    counts[report["call"]["dtype"]] += 1
                    if report["failures"]:
                        counts["failed"] += 1
                        progress.console.print(line.strip(), markup=False, highlight=False, soft_wrap=True)
                timer.cancel()
                if worker.wait() != 0 and time.monotonic() < until:
                    counts["processes that crashed"] += 1
                    progress.console.print(f"the process of seed {seed} ended after {num_calls} calls")

        list(executor.map(work, range(args.jobs)))
    kinds = (*DTYPES, "failed", "processes that crashed")
    print(f"{counts['calls']} random calls:", ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind]))
    return int(bool(counts["failed"] or counts["processes that crashed"]) or not counts["calls"])


if __name__ == "__main__":
    sys.exit(main())
