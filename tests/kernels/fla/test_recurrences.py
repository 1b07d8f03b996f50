"""What the baselines ask of flash-linear-attention's kernels on a GPU, tested without one."""

import inspect
import warnings

import pytest
import torch

from palimpsa.kernels.fla import recurrences
from palimpsa.kernels.fla.guards import prepare_kernels


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU, so that the kernels are called: here, something that writes the call down."""

    is_cuda = True


KERNELS = {
    "gla": "palimpsa.kernels.fla.gla_chunks.chunk_gla",
    "simple_gla": "fla.ops.simple_gla.chunk_simple_gla",
    "gated_delta_rule": "fla.ops.gated_delta_rule.chunk_gated_delta_rule",
}


@pytest.fixture
def call(monkeypatch):
    """Runs a recurrence as on a GPU; returns the kernel that it called, and with what, by the kernel's own names."""

    def run(rule: str, *operands, state=None, cu_seqlens=None):
        calls, o_and_state = [], (object(), object())
        for name, path in KERNELS.items():
            module, _, function = path.rpartition(".")
            signature = inspect.signature(getattr(pytest.importorskip(module), function))

            def kernel(*args, name=name, signature=signature, **options):
                calls.append((name, signature.bind(*args, **options).arguments))
                return o_and_state

            monkeypatch.setattr(path, kernel)
        on_gpu = [x.as_subclass(OnGPU) for x in operands]
        assert getattr(recurrences, rule)(*on_gpu, state, cu_seqlens) == o_and_state
        assert len(calls) == 1
        return calls[0]

    return run


def operands(dtype=torch.bfloat16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 6, 2, n, generator=generator).to(dtype) for n in (4, 4, 16))
    return q, k, v, torch.rand(1, 6, 2, generator=generator), -torch.rand(1, 6, 2, generator=generator)


@pytest.mark.parametrize("rule", KERNELS)
def test_kernels_get_their_operands_by_the_right_name(call, rule):
    q, k, v, beta, g = operands()
    own = {"gla": (g,), "simple_gla": (g,), "gated_delta_rule": (beta, g)}[rule]
    state, bounds = torch.zeros(1, 2, 4, 16), torch.tensor([0, 2, 6], dtype=torch.int32)
    name, arguments = call(rule, q, k, v, *own, state=state, cu_seqlens=bounds)
    assert name == rule
    expected = {"q": q, "k": k, "v": v, "initial_state": state, "cu_seqlens": bounds.long()}
    expected |= {"g": g} if "gla" in rule or "gated" in rule else {}
    expected |= {"beta": beta} if "delta" in rule else {}
    assert arguments.keys() == expected.keys() | {"output_final_state", "scale"}
    assert arguments["scale"] == q.shape[-1] ** -0.5
    assert arguments["output_final_state"] is True
    assert arguments["cu_seqlens"].dtype == torch.int64
    assert all(torch.equal(arguments[key], value) for key, value in expected.items())


def test_gla_with_few_values_fills_them_up_for_the_kernel_alone(monkeypatch):
    from fla.ops.gla.naive import naive_recurrent_gla

    import palimpsa.kernels.fla.gla_chunks

    widths = []

    def kernel(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):
        widths.append((v.shape[-1], initial_state.shape[-1]))
        plain = (x.as_subclass(torch.Tensor) for x in (q, k, v, g))
        return naive_recurrent_gla(*plain, initial_state=initial_state, output_final_state=True)

    monkeypatch.setattr(palimpsa.kernels.fla.gla_chunks, "chunk_gla", kernel)
    q, k, v, _, _ = operands(torch.float32)
    g, state = -torch.rand(1, 6, 2, 4, generator=torch.Generator().manual_seed(1)), torch.ones(1, 2, 4, 6)
    found = recurrences.gla(*(x.as_subclass(OnGPU) for x in (q, k, v[..., :6], g)), state, None)
    assert widths == [(16, 16)]
    for a, b in zip(found, recurrences.gla(q, k, v[..., :6], g, state, None), strict=True):
        torch.testing.assert_close(a.as_subclass(torch.Tensor), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deltanet_takes_the_gated_kernel_without_decay(call, dtype):
    """The library's own kernels of the delta rule are compiled wrongly for Hopper, and refuse fp32."""
    q, k, v, beta, _ = operands(dtype)
    name, arguments = call("delta_rule", q, k, v, beta)
    assert name == "gated_delta_rule"
    assert torch.equal(arguments["beta"], beta)
    assert arguments["g"].dtype == torch.float32
    assert not arguments["g"].any()


@pytest.mark.parametrize("rule", ["simple_gla", "delta_rule", "gated_delta_rule"])
def test_the_miscompiled_configurations_are_avoided_wherever_they_are_run(call, rule, monkeypatch):
    avoided = []
    for place in ("palimpsa.kernels.fla.recurrences", "palimpsa.kernels.fla.guards"):
        monkeypatch.setattr(f"{place}.prepare_kernels", avoided.append)
    q, k, v, beta, g = operands()
    call(rule, q, k, v, *{"simple_gla": (g,), "delta_rule": (beta,), "gated_delta_rule": (beta, g)}[rule])
    assert avoided == [q.device]


def test_code_that_avoids_them_is_compiled_without_a_break_or_a_warning():
    def run(x):
        prepare_kernels(x.device)
        return 2 * x

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.compile(run, backend="eager", fullgraph=True)(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize("mapped", [(0, 0, 0), (0, None, None), (None, 1, None), (None, None, 0)], ids=str)
@pytest.mark.parametrize("bounds", [None, (0, 2, 2, 6)])
@pytest.mark.parametrize("rule", ["gla", "simple_gla", "delta_rule", "gated_delta_rule"])
def test_under_torch_func_every_rule_is_the_librarys_reference(rule, mapped, bounds):
    """Which writes in place, what torch.vmap cannot do to what is not mapped."""
    q, k, v, beta, g = operands(torch.float32)
    own = {"gla": (g[..., None].expand_as(q),), "simple_gla": (g,), "delta_rule": (beta,)}.get(rule, (beta, g))
    state = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(1)) if bounds is None else None
    cu_seqlens = None if bounds is None else torch.tensor(bounds)

    def run(q, k, v):
        o, final = getattr(recurrences, rule)(q, k, v, *own, state, cu_seqlens)
        return o, final

    entries = [[x, x / 2] for x in (q, k, v)]
    stacked = [x[0] if dim is None else torch.stack(x, dim) for x, dim in zip(entries, mapped, strict=True)]
    found = torch.func.vmap(run, in_dims=mapped)(*stacked)
    expected = run(*(x[0] if dim is None else x[1] for x, dim in zip(entries, mapped, strict=True)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[1], other)
    gradients = torch.func.vmap(torch.func.grad(lambda *args: run(*args)[0].square().sum()), mapped)(*stacked)
    assert gradients.shape == (2, *q.shape)
    # On a GPU too, whose kernels have no rules.
    on_gpu = [x.as_subclass(OnGPU) for x in (q, k, v)]
    assert recurrences._has_kernels(on_gpu[0])
    torch.func.vmap(lambda x: x if recurrences._has_kernels(x.as_subclass(OnGPU)) is False else 1 / 0)(q)


def test_batched_gradients_through_the_librarys_kernels_are_one_clear_error(monkeypatch):
    """They would read memory that is not theirs."""
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    def kernel(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):
        plain = (x.as_subclass(torch.Tensor) for x in (q, k, v, g))
        return naive_recurrent_simple_gla(*plain, initial_state=initial_state, output_final_state=True)

    monkeypatch.setattr("fla.ops.simple_gla.chunk_simple_gla", kernel)
    q, k, v, _, g = operands(torch.float32)
    q.requires_grad_()
    o, final = recurrences.simple_gla(*(x.as_subclass(OnGPU) for x in (q, k, v, g)), None, None)
    o, final = o.as_subclass(torch.Tensor), final.as_subclass(torch.Tensor)
    torch.autograd.grad(o.sum(), q, retain_graph=True)
    for x in (o, o.sum()):
        with pytest.raises(NotImplementedError, match=r"takes no batched gradients \(is_grads_batched=True"):
            torch.autograd.grad(x, q, torch.ones(2, *x.shape), is_grads_batched=True, retain_graph=True)
        with pytest.raises(NotImplementedError, match="takes no batched gradients"):
            torch.func.vmap(lambda w, x=x: torch.autograd.grad(x, q, w, retain_graph=True))(torch.ones(2, *x.shape))


def odd_operands(rule, K, V, dtype, bounds):
    """The operands of a rule, on a CPU, a state where nothing is packed, and boundaries."""
    generator = torch.Generator().manual_seed(K)
    q, k, v = (torch.randn(1, 70, 2, n, generator=generator) / n**0.5 for n in (K, K, V))
    beta, g = torch.rand(1, 70, 2, generator=generator), -torch.rand(1, 70, 2, generator=generator)
    own = {"gla": (g[..., None].expand_as(q),), "simple_gla": (g,), "delta_rule": (beta,)}.get(rule, (beta, g))
    state = torch.randn(1, 2, K, V, generator=generator) if bounds is None else None
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    return [*(x.to(dtype) for x in (q, k, v)), *own, state], cu_seqlens


def with_gradients(rule, arguments, cu_seqlens):
    """o, the last state, and the gradients of all operands and the state, on the CPU."""
    leaves = [x.detach().clone().requires_grad_() for x in arguments if x is not None]
    given = leaves if arguments[-1] is not None else [*leaves, None]
    o, final = getattr(recurrences, rule)(*given, cu_seqlens)
    loss = o.float().square().sum() + final.float().square().sum()
    return [x.detach().cpu().float() for x in (o, final, *torch.autograd.grad(loss, leaves))]


RULES = ("gla", "simple_gla", "delta_rule", "gated_delta_rule")


@pytest.mark.parametrize(("K", "V"), [(17, 31), (3, 100), (16, 33), (1, 1), (18, 6)])
@pytest.mark.parametrize(
    ("dtype", "bounds"), [(torch.bfloat16, None), (torch.bfloat16, (0, 1, 70)), (torch.float32, None)]
)
@pytest.mark.parametrize("rule", RULES)
def test_kernels_get_even_heads_in_half_precision_and_give_what_was_asked_for(monkeypatch, rule, K, V, dtype, bounds):
    """Of an odd width the way back would end in an assertion, or read memory that is not its own."""
    widths = []

    def kernel(q, k, v, g, beta=None, *, scale, initial_state, output_final_state, cu_seqlens):
        widths.append((q.shape[-1], v.shape[-1]))
        g = g if g.ndim == 4 else g[..., None]
        assert initial_state is None or initial_state.shape[2:] == widths[-1]
        operands = (q * (scale * q.shape[-1] ** 0.5), k, v, g, *([] if beta is None else [beta]))
        return recurrences._by_reference(recurrences._gated_recurrence, operands, initial_state, cu_seqlens)

    arguments, cu_seqlens = odd_operands(rule, K, V, dtype, bounds)
    expected = with_gradients(rule, arguments, cu_seqlens)
    for path in KERNELS.values():
        monkeypatch.setattr(path, kernel)
    monkeypatch.setattr(recurrences, "_has_kernels", lambda q: True)
    found = with_gradients(rule, arguments, cu_seqlens)
    for own, width in zip(widths[0], (K, V), strict=True):
        assert own >= width
        assert dtype == torch.float32 or own % 2 == 0
        assert own == width or width % 2 or rule == "gla"
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rule", "K", "V", "bounds"),
    [("simple_gla", 17, 31, None), ("gla", 3, 100, (0, 1, 70)), ("gated_delta_rule", 17, 31, None)],
)
def test_odd_heads_on_a_gpu_are_those_of_the_reference(untuned_library, rule, K, V, bounds):
    arguments, cu_seqlens = odd_operands(rule, K, V, torch.bfloat16, bounds)
    expected = with_gradients(rule, arguments, cu_seqlens)
    on_gpu = [None if x is None else x.cuda() for x in arguments]
    found = with_gradients(rule, on_gpu, None if cu_seqlens is None else cu_seqlens.cuda())
    # The library keeps its chunks' states in half precision.
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 3e-2 * max(1.0, other.abs().max().item())
