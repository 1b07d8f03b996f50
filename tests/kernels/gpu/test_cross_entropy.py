"""The cross-entropy in Triton against torch's: in Triton's interpreter, or on the GPU where there is one."""

# N rows, V classes
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from palimpsa.kernels.gpu.cross_entropy import row_results
from palimpsa.mixers.layers import at_least_fp32
from palimpsa.tasks import linear_loss
from palimpsa.tasks.linear_loss import linear_cross_entropy
from palimpsa.tasks.loss import _RowKernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def expected(logits, labels):
    """Losses, who was right, and the gradient of the mean, in float64."""
    leaf = logits.double().requires_grad_()
    losses = F.cross_entropy(leaf, labels, reduction="none")
    return losses.detach(), logits.argmax(1) == labels, torch.autograd.grad(losses.mean(), leaf)[0]


def compare(logits, labels, tolerance):
    found = row_results(logits.to(DEVICE), labels.to(DEVICE), with_gradient=True)
    losses, is_right, gradient = expected(logits, labels)
    torch.testing.assert_close(found.losses.cpu().double(), losses, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.is_right.cpu(), is_right)
    assert found.gradient is not None
    assert found.gradient.dtype == logits.dtype
    # Of the largest that an entry of the mean's gradient can be.
    assert (found.gradient.cpu().double() - gradient).abs().max() * len(labels) <= tolerance


@pytest.mark.parametrize(("N", "V"), [(1, 1), (5, 7), (3, 1000), (4, 2048)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 1e-3)])
def test_agrees_with_torch_in_float64(N, V, dtype, tolerance):
    generator = torch.Generator().manual_seed(N)
    logits = (4 * torch.randn(N, V, generator=generator)).to(dtype)
    labels = torch.randint(0, V, (N,), generator=generator)
    # One row is right.
    logits[0, labels[0]] = 20.0
    compare(logits, labels, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("N", "V"), [(16384, 8192), (100, 50257), (7, 65536)])
def test_agrees_at_full_size_in_bfloat16(N, V):
    generator = torch.Generator().manual_seed(N)
    compare(torch.randn(N, V, generator=generator).bfloat16(), torch.randint(0, V, (N,), generator=generator), 1e-2)


def test_among_equal_logits_the_first_is_the_answer():
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 3.0, 1.0]])
    compare(logits, torch.tensor([1, 2, 0, 1]), 1e-6)


def test_extreme_logits_stay_finite_and_nan_is_never_right():
    inf, nan = float("inf"), float("nan")
    compare(torch.tensor([[1e4, -1e4, 0.0], [-inf, 0.0, 1.0], [80.0, 80.0, -inf]]), torch.tensor([0, 2, 0]), 1e-6)
    compare(torch.tensor([[3e38, 0.0, -3e38], [0.0, 1.0, 2.0]]), torch.tensor([0, 1]), 1e-6)
    logits = torch.tensor([[nan, 0.0], [1.0, nan], [nan, nan], [inf, 0.0]], device=DEVICE)
    found = row_results(logits, torch.tensor([0, 0, 1, 0], device=DEVICE), with_gradient=False)
    assert found.gradient is None
    assert found.losses.isnan().all()
    assert not found.is_right.any()


def test_far_from_zero_it_is_as_exact_as_torch():
    logits = 1000 + torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    found = row_results(logits.to(DEVICE), labels.to(DEVICE), with_gradient=True).losses.cpu()
    exact = F.cross_entropy(logits.double(), labels, reduction="none")
    assert ((found - exact).abs() <= 2e-6).all()


def test_takes_a_part_of_wider_rows():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    compare(logits[:, 2:7], torch.tensor([0, 4, 2, 1]), 1e-6)


def test_no_row_gives_no_result():
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    found = row_results(torch.empty(0, 5, device=DEVICE), none, with_gradient=True)
    assert [x.shape for x in found] == [(0,), (0,), (0, 5)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 1e-3)])
def test_an_ignored_label_is_no_target_and_a_share_weighs_every_other(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(6, 300, generator=generator)).to(dtype)
    labels = torch.tensor([0, -100, 299, 7, -100, 7])
    # Right where they are targets; what an ignored row holds does not matter.
    logits[0, 0], logits[1, 0], logits[4, 1] = 20.0, 20.0, float("nan")
    leaf = logits.double().requires_grad_()
    losses = F.cross_entropy(leaf, labels, reduction="none")
    is_target = labels != -100
    (gradient,) = torch.autograd.grad(0.5 * losses[is_target].sum(), leaf)
    options = {"with_gradient": True, "ignore_index": -100, "share": 0.5}
    found = row_results(logits.to(DEVICE), labels.to(DEVICE), **options)
    torch.testing.assert_close(found.losses.cpu().double(), losses.detach(), rtol=1e-5, atol=1e-5)
    assert found.is_right.tolist() == [True, *[False] * 5]
    assert found.gradient is not None
    own = found.gradient.cpu()
    assert (own[~is_target] == 0).all()
    assert (own[is_target].double() - gradient[is_target]).abs().max() <= tolerance
    without = row_results(logits.to(DEVICE), labels.to(DEVICE), with_gradient=False, ignore_index=-100)
    assert without.gradient is None
    assert torch.equal(without.losses, found.losses)


def test_a_label_that_is_no_class_makes_its_own_row_nan():
    labels = torch.tensor([2, -100, -1, 5, 10**12], device=DEVICE)
    found = row_results(torch.zeros(5, 5, device=DEVICE), labels, with_gradient=True, ignore_index=-100)
    assert found.losses.isnan().tolist() == [False, False, True, True, True]
    assert found.gradient is not None
    assert found.gradient.isnan().all(1).tolist() == [False, False, True, True, True]
    assert not found.gradient[:2].isnan().any()
    assert found.is_right.tolist() == [False] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_linear_layers_loss_by_the_kernel_is_as_exact_as_torchs(dtype, monkeypatch):
    """In 8 chunks, of which the last is smaller."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(60, 16, generator=generator).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(40, 16, generator=generator).to(DEVICE, dtype).requires_grad_()
    labels = torch.randint(0, 40, (60,), generator=generator).to(DEVICE)
    labels[::5] = -100
    monkeypatch.setattr(linear_loss, "row_kernel_takes", lambda logits: True)
    own = linear_cross_entropy(hidden, weight, labels, rows_per_chunk=8)
    gradients = torch.autograd.grad(own.mean, (hidden, weight))
    exact, torchs = (
        [losses.detach(), *torch.autograd.grad(losses.sum() / 48, leaves)]
        for leaves in ([x.detach().double().requires_grad_() for x in (hidden, weight)], (hidden, weight))
        for losses in [F.cross_entropy(at_least_fp32(F.linear(*leaves)), labels, reduction="none")]
    )
    for found, reference, truth in zip((own.losses, *gradients), torchs, exact, strict=True):
        errors = [(x.double() - truth).abs().max().item() for x in (found, reference)]
        assert errors[0] <= 2 * errors[1] + 1e-5 * truth.abs().max().item()


def test_batched_gradients_are_those_of_torchs():
    logits, labels = torch.randn(5, 7, device=DEVICE, requires_grad=True), torch.tensor([0, 1, 2, 3, 6], device=DEVICE)
    gradients = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
    loss, _ = _RowKernel.apply(logits, labels)
    by_vmap = torch.func.vmap(lambda w: torch.autograd.grad(loss, logits, w, retain_graph=True)[0])(gradients)
    torch.testing.assert_close(by_vmap, torch.autograd.grad(loss, logits, gradients, is_grads_batched=True)[0])
    found, expected = (
        torch.autograd.grad(loss, logits, gradients, is_grads_batched=True)
        for loss in (_RowKernel.apply(logits, labels)[0], F.cross_entropy(logits, labels))
    )
    torch.testing.assert_close(found, expected)
