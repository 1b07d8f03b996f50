"""The embedding's gradient in Triton against a sum in float64: in Triton's interpreter, or on a GPU if there is one."""

# N tokens, V vocabulary, D width
import pytest
import torch

pytest.importorskip("triton")
from palimpsa.kernels.gpu import embedding
from palimpsa.kernels.gpu.embedding import BLOCK, embedding_gradient
from palimpsa.model.embedding import _Lookup

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check(tokens, D, V, dtype=torch.float32):
    gradient = torch.randn(len(tokens), D, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = embedding_gradient(gradient.to(DEVICE), tokens.to(DEVICE), V).cpu()
    exact = torch.zeros(V, D, dtype=torch.float64).index_add_(0, tokens, gradient.double())
    sizes = torch.zeros_like(exact).index_add_(0, tokens, gradient.double().abs())
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 1e-5 * sizes).all()
    # What is not among the tokens has no gradient at all.
    assert not found[torch.bincount(tokens, minlength=V) == 0].any()


@pytest.mark.parametrize(
    ("N", "D", "V"),
    [
        (1, 4, 5),
        (BLOCK, 8, 3),
        (BLOCK + 1, 5, 40),
        (100, 130, 50),
        (300, 3, 40_000),
        (10 * BLOCK, 128, 2),
        (35 * BLOCK, 4, 1),
    ],
)
def test_agrees_with_a_sum_in_float64(N, D, V):
    generator = torch.Generator().manual_seed(N)
    tokens = torch.randint(0, V, (N,), generator=generator)
    # Often one word, as the filler is.
    tokens[torch.rand(N, generator=generator) < 0.3] = V // 2
    check(tokens, D, V)


# Parts of one word that are met at a time: as in the kernel that runs, but for their number.
AHEAD = 4


@pytest.mark.parametrize("num", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, (AHEAD + 3) * BLOCK + 5, 2 * AHEAD * BLOCK])
@pytest.mark.parametrize("before", [0, 1, BLOCK - 1, BLOCK])
@pytest.mark.parametrize("after", [0, 1, BLOCK])
def test_a_word_may_begin_and_end_anywhere_in_a_block(monkeypatch, before, num, after):
    monkeypatch.setattr(embedding, "AHEAD", AHEAD)
    tokens = torch.tensor([0] * before + [1] * num + [2] * after)
    check(tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))], 2, 3)


def test_takes_half_precision_and_sums_in_float32():
    check(torch.arange(300) % 7, 6, 7, torch.float16)


def test_no_token_gives_no_gradient():
    found = embedding_gradient(torch.empty(0, 4, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE), 3)
    assert torch.equal(found.cpu(), torch.zeros(3, 4))


def test_batched_gradients_are_those_of_pytorchs_own():
    tokens = torch.tensor([[1, 2, 1], [0, 6, 1]], device=DEVICE)
    weight = torch.randn(7, 4, device=DEVICE, requires_grad=True)
    gradients = torch.randn(3, 2, 3, 4, device=DEVICE)
    found, expected = (
        torch.autograd.grad(y, weight, gradients, is_grads_batched=True)
        for y in (_Lookup.apply(weight, tokens), torch.nn.functional.embedding(tokens, weight))
    )
    torch.testing.assert_close(found, expected)
