"""What the baselines ask of flash-linear-attention's kernels on a GPU, tested without one."""

import inspect
import warnings

import pytest
import torch

from palimpsa.kernels.fla import recurrences
from palimpsa.kernels.fla.guards import avoid_miscompiled_backward


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
        calls = []
        for name, path in KERNELS.items():
            module, _, function = path.rpartition(".")
            signature = inspect.signature(getattr(pytest.importorskip(module), function))

            def kernel(*args, name=name, signature=signature, **options):
                calls.append((name, signature.bind(*args, **options).arguments))
                return "o", "state"

            monkeypatch.setattr(path, kernel)
        on_gpu = [x.as_subclass(OnGPU) for x in operands]
        assert getattr(recurrences, rule)(*on_gpu, state, cu_seqlens) == ("o", "state")
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
    assert arguments.keys() == expected.keys() | {"output_final_state"}
    assert arguments["output_final_state"] is True
    assert arguments["cu_seqlens"].dtype == torch.int64
    assert all(torch.equal(arguments[key], value) for key, value in expected.items())


def test_gla_with_few_values_fills_them_up_for_the_kernel_alone(monkeypatch):
    from fla.ops.gla.naive import naive_recurrent_gla

    import palimpsa.kernels.fla.gla_chunks

    widths = []

    def kernel(q, k, v, g, initial_state, output_final_state, cu_seqlens):
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
        monkeypatch.setattr(f"{place}.avoid_miscompiled_backward", avoided.append)
    q, k, v, beta, g = operands()
    call(rule, q, k, v, *{"simple_gla": (g,), "delta_rule": (beta,), "gated_delta_rule": (beta, g)}[rule])
    assert avoided == [q.device]


def test_code_that_avoids_them_is_compiled_without_a_break_or_a_warning():
    def run(x):
        avoid_miscompiled_backward(x.device)
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

    def kernel(q, k, v, g, initial_state, output_final_state, cu_seqlens):
        plain = (x.as_subclass(torch.Tensor) for x in (q, k, v, g))
        return naive_recurrent_simple_gla(*plain, initial_state=initial_state, output_final_state=True)

    monkeypatch.setattr("fla.ops.simple_gla.chunk_simple_gla", kernel)
    q, k, v, _, g = operands(torch.float32)
    q.requires_grad_()
    o, final = recurrences.simple_gla(*(x.as_subclass(OnGPU) for x in (q, k, v, g)), None, None)
    o, final = o.as_subclass(torch.Tensor), final.as_subclass(torch.Tensor)
    torch.autograd.grad(o.sum(), q, retain_graph=True)
    for x in (o, o.sum()):
        with pytest.raises(NotImplementedError, match=r"take no batched gradients \(is_grads_batched=True\)"):
            torch.autograd.grad(x, q, torch.ones(2, *x.shape), is_grads_batched=True, retain_graph=True)
