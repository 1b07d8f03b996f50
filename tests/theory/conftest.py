"""A sequence that the theory's tests share."""

# B batch, T time, H heads, K key dim, V value dim
import math

import pytest
import torch

from palimpsa.kernels import palimpsa_reference
from palimpsa.theory.free_energy import log_decay
from palimpsa.theory.special_cases import Gaussian


class Sequence:
    """Arguments of one sequence; v is a target times its precision, beta one number a token."""

    def __init__(self, B=2, T=14, H=2, K=4, V=3, seed=0, window=12.0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64)

        def uniform(*size):
            return torch.rand(size, generator=generator, dtype=torch.float64)

        self.q, self.k = normal(B, T, H, K), normal(B, T, H, K) / math.sqrt(K)
        self.beta = 0.2 + uniform(B, T, H)
        self.beta_rows = 0.2 + uniform(B, T, H, V)
        self.target = normal(B, T, H, V)
        self.v = self.beta[..., None] * self.target
        self.g = log_decay(window) * (0.2 + uniform(B, T, H))
        self.prior = 0.5 + uniform(H)
        self.one = torch.ones(H, dtype=torch.float64)

    @property
    def rows_of_beta(self):
        return self.beta[..., None].expand_as(self.v)

    def palimpsa(self, beta=None, **changed):
        arguments = {"q": self.q, "k": self.k, "v": self.v, "g": self.g, "importance_prior": self.prior} | changed
        return palimpsa_reference(**arguments, beta=beta, output_final_state=True)

    def updated(self, update, beta, full=False):
        """Rows [B, H, V, K] after all tokens of an update of the theory, from the prior; beta [B, T, H, V]."""
        mean = torch.zeros(*self.v.shape[:1], *self.v.shape[2:], self.q.shape[-1], dtype=torch.float64)
        importance = self.prior[None, :, None, None].expand_as(mean)
        rows = Gaussian(mean, torch.diag_embed(importance) if full else importance)
        for t in range(self.q.shape[1]):
            lead = self.v[:, t].shape
            g, prior = self.g[:, t, :, None].expand(lead), self.prior[None, :, None].expand(lead)
            rows = update(rows, self.k[:, t, :, None].expand_as(rows.mean), self.v[:, t], beta[:, t], g, prior)
        return rows


@pytest.fixture
def make_sequence():
    """`make_sequence(T=5)`: arguments of one sequence, the same at every call."""
    return Sequence
