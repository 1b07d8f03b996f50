"""What GLA asks of the library's parts on a GPU, tested without one: their stand-ins compute by its reference."""

import itertools

import pytest
import torch

from palimpsa.kernels.fla.gla_chunks import chunk_gla
from palimpsa.kernels.fla.guards import call_padded

SCALE = 0.3


@pytest.fixture
def library(monkeypatch):
    """Replaces the two parts; returns the chunk sizes that they were called with."""
    parts = pytest.importorskip("fla.ops.gla.chunk")
    from fla.ops.gla.naive import naive_recurrent_gla

    sizes = []

    def reference(q, k, v, g, state, scale, bounds):
        assert scale == SCALE
        outputs, finals = [], []
        bounds = [0, q.shape[1]] if bounds is None else bounds.tolist()
        for start, end in itertools.pairwise(bounds):
            pieces = (x[:, start:end] for x in (q, k, v, g))
            # Which has a scale of its own.
            q_n, *rest = pieces
            o, final = naive_recurrent_gla(
                q_n * (SCALE * q_n.shape[-1] ** 0.5), *rest, initial_state=state, output_final_state=True
            )
            outputs.append(o)
            finals.append(final)
        return torch.cat(outputs, 1), torch.cat(finals)

    def forward(q, k, v, g, *, g_cumsum, scale, initial_state, output_final_state, cu_seqlens, chunk_size):
        assert g_cumsum is None
        assert output_final_state
        assert all(x is None or x.is_contiguous() for x in (q, k, v, g, initial_state, cu_seqlens))
        sizes.append(chunk_size)
        o, final = reference(q, k, v, g, initial_state, scale, cu_seqlens)
        # Stand for what the way back needs: g itself, and something to tell from it.
        pairs = q.new_full((*q.shape[:3], chunk_size), 7.0)
        return g.clone(), pairs, None, final, o

    def backward(q, k, v, *, g, g_cumsum, scale, initial_state, h, A, do, dht, cu_seqlens, chunk_size):
        assert g is None
        assert h is None
        assert (A == 7).all()
        assert all(x is None or x.is_contiguous() for x in (q, k, v, do, dht, initial_state, cu_seqlens))
        sizes.append(chunk_size)
        # Below autograd, where nothing is recorded: by hand.
        found = [torch.zeros_like(x) for x in (q, k, v, g_cumsum)]
        dstates = []
        bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        for n, (start, end) in enumerate(itertools.pairwise(bounds)):
            S = torch.zeros(*k.shape[2:], v.shape[-1]) if initial_state is None else initial_state[n]
            states = [S]
            for t in range(start, end):
                states.append(g_cumsum[0, t].exp()[..., None] * states[-1] + k[0, t, :, :, None] * v[0, t, :, None, :])
            dS = torch.zeros_like(S) if dht is None else dht[n].clone()
            for t in reversed(range(start, end)):
                before, after, alpha = states[t - start], states[t - start + 1], g_cumsum[0, t].exp()[..., None]
                dS = dS + scale * q[0, t, :, :, None] * do[0, t, :, None, :]
                found[0][0, t] = scale * (after * do[0, t, :, None, :]).sum(-1)
                found[1][0, t] = (dS * v[0, t, :, None, :]).sum(-1)
                found[2][0, t] = (dS * k[0, t, :, :, None]).sum(-2)
                found[3][0, t] = (alpha * before * dS).sum(-1)
                dS = alpha * dS
            dstates.append(dS)
        return *found, torch.stack(dstates) if initial_state is not None else None

    monkeypatch.setattr(parts, "chunk_gla_fwd", forward)
    monkeypatch.setattr(parts, "chunk_gla_bwd", backward)
    return sizes


def arguments(T=6, K=4, V=5, with_state=True):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    g = (-torch.rand(1, T, 2, K, generator=generator)).requires_grad_()
    # As a transposed view, which kernels would misread.
    state = normal(1, 2, V, K).transpose(2, 3) if with_state else None
    return [normal(1, T, 2, K), normal(1, T, 2, K), normal(1, T, 2, V), g], state


@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_and_gradients_are_those_of_the_reference(library, with_state):
    from fla.ops.gla.naive import naive_recurrent_gla

    operands, state = arguments(with_state=with_state)
    wanted = [*operands, *([state] if state is not None else [])]
    found = chunk_gla(*operands, scale=SCALE, initial_state=state, output_final_state=True, cu_seqlens=None)
    q, *rest = operands
    expected = naive_recurrent_gla(
        q * (SCALE * q.shape[-1] ** 0.5), *rest, initial_state=state, output_final_state=True
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    # Of both results, of the output alone, of the state alone.
    for weights in ((1, 1), (1, 0), (0, 1)):
        sums = [
            sum(w * (x * x).sum() for w, x in zip(weights, results, strict=True) if w) for results in (found, expected)
        ]
        own, right = (torch.autograd.grad(s, wanted, retain_graph=True, allow_unused=True) for s in sums)
        for one, other in zip(own, right, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, atol=1e-5, rtol=1e-4)


def test_packed_sequences_start_anew(library):
    operands, _ = arguments()
    # A strided view of the bounds.
    bounds = torch.tensor([0, 9, 2, 9, 6, 9])[::2]
    o, final = chunk_gla(*operands, scale=SCALE, initial_state=None, output_final_state=True, cu_seqlens=bounds)
    second = [x[:, 2:] for x in operands]
    alone, last = chunk_gla(*second, scale=SCALE, initial_state=None, output_final_state=True, cu_seqlens=None)
    assert final is not None
    assert last is not None
    assert final.shape == (2, 2, 4, 5)
    torch.testing.assert_close(o[:, 2:], alone)
    torch.testing.assert_close(final[1:], last)


@pytest.mark.parametrize(
    ("T", "K", "V", "expected"), [(100, 16, 32, 16), (100, 32, 64, 64), (20, 32, 64, 32), (3, 64, 64, 16)]
)
def test_narrow_heads_have_short_chunks_and_none_is_longer_than_the_sequence(library, T, K, V, expected):
    operands, _ = arguments(T, K, V, with_state=False)
    o, final = chunk_gla(*operands, scale=SCALE, initial_state=None, output_final_state=False, cu_seqlens=None)
    assert final is None
    o.sum().backward()
    assert library == [expected, expected]


@pytest.mark.parametrize(("with_state", "packed"), [(False, False), (True, False), (False, True)])
def test_batched_gradients_and_transforms_are_those_of_single_ones(library, with_state, packed):
    operands, state = arguments(3, 2, 4, with_state=with_state)
    wanted = [*operands, *([state] if state is not None else [])]
    bounds = torch.tensor([0, 1, 3]) if packed else None

    def run(*wanted):
        state = wanted[4] if with_state else None
        o, final = chunk_gla(*wanted[:4], scale=SCALE, initial_state=state, output_final_state=True, cu_seqlens=bounds)
        return torch.cat([o.flatten(), final.flatten()])

    y = run(*wanted)
    eye = torch.eye(len(y))
    each = [torch.autograd.grad(y, wanted, row, retain_graph=True) for row in eye]
    expected = [torch.stack(xs) for xs in zip(*each, strict=True)]
    numbers = tuple(range(len(wanted)))
    for found in (
        torch.autograd.grad(y, wanted, eye, is_grads_batched=True, retain_graph=True),
        torch.func.jacrev(run, numbers)(*(x.detach() for x in wanted)),
    ):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    mapped = torch.func.vmap(run)(*(torch.stack([x.detach(), x.detach() / 2]) for x in wanted))
    torch.testing.assert_close(mapped[1], run(*(x.detach() / 2 for x in wanted)))
    with pytest.raises(RuntimeError, match="chunk_gla is differentiable once, and backwards"):
        torch.func.jacfwd(lambda q: run(q, *(x.detach() for x in wanted[1:])))(wanted[0].detach())


def test_it_is_no_break_in_a_compiled_graph(library):
    """With what stands before it: heads of odd width that are filled up."""
    operands, state = arguments(6, 3, 5)
    q, k, v, g = operands
    operands = [q.bfloat16(), k.bfloat16(), v.bfloat16(), g]

    def run(*operands):
        return call_padded(
            chunk_gla, operands, scale=SCALE, initial_state=state, output_final_state=True, cu_seqlens=None
        )

    torch.compiler.reset()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for one, other in zip(compiled(*operands), run(*operands), strict=True):
        assert torch.equal(one, other)
    assert one.shape == state.shape
