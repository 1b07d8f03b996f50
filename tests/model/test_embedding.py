"""The token embedding is torch's, and its gradient on a GPU the same in every run."""

import pytest
import torch

from palimpsa.model.embedding import TokenEmbedding


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_embedding_has_its_gradient_the_same_in_every_run(dtype):
    torch.manual_seed(0)
    embedding = TokenEmbedding(8192, 128).to("cuda", dtype)
    tokens = torch.randint(0, 8192, (128, 512), device="cuda")
    tokens[:, 384:] = 0
    upstream = torch.randn(128, 512, 128, device="cuda", dtype=dtype)
    runs = [torch.autograd.grad(embedding(tokens), embedding.weight, upstream)[0] for _ in range(2)]
    assert torch.equal(*runs)
    assert runs[0].dtype == dtype
    flat = upstream.flatten(0, 1).double()
    exact = torch.zeros(8192, 128, dtype=torch.float64, device="cuda").index_add_(0, tokens.flatten(), flat)
    torch.testing.assert_close(runs[0].double(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def test_an_embedding_is_torchs_on_the_cpu():
    ours, theirs = TokenEmbedding(11, 6), torch.nn.Embedding(11, 6)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.tensor([[1, 1, 10], [0, 5, 1]])
    assert torch.equal(ours(tokens), theirs(tokens))
    upstream = torch.randn(2, 3, 6)
    gradients = [torch.autograd.grad(e(tokens), e.weight, upstream)[0] for e in (ours, theirs)]
    assert torch.equal(*gradients)
