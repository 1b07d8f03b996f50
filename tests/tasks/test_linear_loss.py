"""The chunked cross-entropy of a linear layer: as exact as with all logits at once, and none of them kept."""

# N tokens, D width, V classes
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from palimpsa.mixers import PalimpsaD
from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks import linear_loss
from palimpsa.tasks.linear_loss import linear_cross_entropy
from palimpsa.tasks.loss import unit_gradient

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
NUM_CHUNKS = 64


def problem(N=1024, D=32, V=300, *, seed=0, dtype=torch.float32, device="cpu"):
    """Hidden states, a weight, and labels of which a seventh are none."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
    weight = (2 * D**-0.5 * torch.randn(V, D, generator=generator, dtype=torch.float64)).to(device, dtype)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[::7] = -100
    return hidden, weight.requires_grad_(), labels.to(device)


def with_all_logits(hidden, weight, labels):
    """(mean, losses) from all logits at once, as `cross_entropy` takes them."""
    losses = F.cross_entropy(F.linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32)), labels,
                             reduction="none")  # fmt: skip
    return losses.sum() / (labels != -100).sum(), losses.detach()


def largest_errors(found, exact):
    return [(x.double() - y).abs().max().item() for x, y in zip(found, exact, strict=True)]


def losses_and_gradients(loss_function, hidden, weight, labels, **options):
    mean, losses = loss_function(hidden, weight, labels, **options)
    return [losses, *torch.autograd.grad(mean, (hidden, weight))]


def ratios_of_errors(dtype, device, seed, shape):
    """Errors against float64 of the chunked losses and of both gradients, by those of all logits at once."""
    hidden, weight, labels = problem(*shape, seed=seed, device=device)
    rounded = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = losses_and_gradients(with_all_logits, *rounded, labels)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        chunked = losses_and_gradients(
            linear_cross_entropy, hidden, weight, labels, rows_per_chunk=len(hidden) // NUM_CHUNKS
        )
        whole = losses_and_gradients(with_all_logits, hidden, weight, labels)
    pairs = zip(largest_errors(chunked, exact), largest_errors(whole, exact), strict=True)
    return [own / other for own, other in pairs]


@devices
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize("shape", [(1024, 32, 300), (512, 64, 1000)], ids=lambda s: "N{}-D{}-V{}".format(*s))
def test_in_64_chunks_errors_are_at_most_twice_those_of_all_logits_at_once(dtype, device, seed, shape):
    assert max(ratios_of_errors(dtype, device, seed, shape)) <= 2


@pytest.mark.gpu
def test_errors_are_at_most_twice_with_the_classes_of_a_language_model():
    assert max(ratios_of_errors(torch.bfloat16, "cuda", 0, (8192, 512, 32_000))) <= 2


def test_a_chunk_that_is_left_out_and_sums_in_half_precision_are_seen(monkeypatch):
    exact_product, zeros_like, calls = linear_loss._product, torch.zeros_like, []

    def without_one(a, b):
        calls.append(1)
        return exact_product(a, b) * (len(calls) != NUM_CHUNKS)

    with monkeypatch.context() as patch:
        patch.setattr(linear_loss, "_product", without_one)
        assert max(ratios_of_errors(torch.float32, "cpu", 0, (1024, 32, 300))) > 100
    monkeypatch.setattr(torch, "zeros_like", lambda x, dtype=None: zeros_like(x, dtype=torch.bfloat16))
    assert max(ratios_of_errors(torch.bfloat16, "cpu", 0, (1024, 32, 300))) > 2


def tied_model(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    model = LanguageModel(50, 16, 2, lambda d_model: PalimpsaD(d_model, 2, 8, 8), generator=generator)
    return model.to(dtype)


def tied_gradients(model, tokens, chunked):
    """Of every parameter, by its name: the embedding's is of both of its uses."""
    model.zero_grad()
    hidden, labels = model.hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
    options = {"rows_per_chunk": len(hidden) // NUM_CHUNKS} if chunked else {}
    loss = (linear_cross_entropy if chunked else with_all_logits)(hidden, model.embedding.weight, labels, **options)[0]
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32-true", "bf16-mixed"])
def test_a_tied_embedding_is_as_exact_as_with_all_logits_at_once(dtype):
    tokens = torch.randint(0, 50, (4, 65), generator=torch.Generator().manual_seed(0))
    exact = tied_gradients(tied_model(torch.float64), tokens, False)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        own, other = (tied_gradients(tied_model(), tokens, chunked) for chunked in (True, False))
    for names in (["embedding.weight"], list(exact)):
        # Of all parameters together: in bf16 the blocks' own rounding of one alone is a matter of luck.
        errors = [sum(((x[name] - exact[name]) ** 2).sum() for name in names) ** 0.5 for x in (own, other)]
        assert errors[0] <= 2 * errors[1], names


class LargestTensor(TorchDispatchMode):
    """The most numbers that a result of any operation has."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.size = max(self.size, out.numel() if isinstance(out, torch.Tensor) else 0)
        return out


def test_no_more_logits_than_a_chunks_exist_at_a_time():
    hidden, weight, labels = problem(N=1024, D=8, V=300)
    sizes = {}
    for name, loss_function, options in (
        ("chunked", linear_cross_entropy, {"rows_per_chunk": 16}),
        ("whole", with_all_logits, {}),
    ):
        with LargestTensor() as largest:
            loss_function(hidden, weight, labels, **options)[0].backward()
        sizes[name] = largest.size
    # The hidden states are the largest.
    assert sizes == {"chunked": 1024 * 8, "whole": 1024 * 300}


@devices
@pytest.mark.parametrize("rows_per_chunk", [1, 7, 40, 1000])
def test_any_chunk_gives_the_loss_and_gradients_of_all_logits(rows_per_chunk, device):
    arguments = problem(N=40, D=8, V=11, dtype=torch.float64, device=device)
    found = losses_and_gradients(linear_cross_entropy, *arguments, rows_per_chunk=rows_per_chunk)
    expected = losses_and_gradients(with_all_logits, *arguments)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    mean, losses = linear_cross_entropy(*arguments, rows_per_chunk=rows_per_chunk)
    torch.testing.assert_close(mean, with_all_logits(*arguments)[0], rtol=1e-14, atol=0)
    assert not losses.requires_grad


@devices
def test_tokens_without_a_target_count_for_nothing_whatever_they_hold(device):
    hidden, weight, labels = problem(N=40, D=8, V=11, device=device)
    is_target = labels != -100
    with torch.no_grad():
        hidden[~is_target] = 1e4
    mean, losses = linear_cross_entropy(hidden, weight, labels, rows_per_chunk=16)
    alone = linear_cross_entropy(hidden[is_target], weight, labels[is_target])
    torch.testing.assert_close(mean, alone.mean)
    torch.testing.assert_close(losses[is_target], alone.losses)
    assert (losses[~is_target] == 0).all()
    found, expected = (torch.autograd.grad(loss, (hidden, weight)) for loss in (mean, alone.mean))
    torch.testing.assert_close(found, expected)
    assert (found[0][~is_target] == 0).all()


@devices
def test_without_any_target_nothing_is_learnt(device):
    hidden, weight, labels = problem(N=8, D=4, V=5, device=device)
    found = losses_and_gradients(linear_cross_entropy, hidden, weight, torch.full_like(labels, -100))
    assert all((x == 0).all() for x in found)
    assert linear_cross_entropy(hidden[:0], weight, labels[:0]).mean == 0


@devices
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_micro_batches_add_up_to_the_step_to_the_bit(as_tensor, device):
    """Of micro-batches of a chunk each, with 64 targets in all: a division by them rounds nothing."""
    hidden, weight, labels = problem(N=128, D=8, V=11, device=device)
    # 0, 16, 32 and 16 targets: a mean of the micro-batches' means is not the step's.
    is_target = torch.arange(128, device=device) % 2 == 0
    is_target[:32], is_target[64:96] = False, True
    labels = torch.where(is_target, labels.clamp(min=0), -100)
    whole = linear_cross_entropy(hidden, weight, labels, rows_per_chunk=32).mean
    whole.backward()
    expected = [x.grad for x in (hidden, weight)]
    hidden.grad = weight.grad = None
    num_targets = torch.tensor(64, device=device) if as_tensor else 64
    means = []
    for start in range(0, 128, 32):
        part = slice(start, start + 32)
        means.append(linear_cross_entropy(hidden[part], weight, labels[part], num_targets=num_targets).mean)
        means[-1].backward()
    torch.testing.assert_close(sum(means), whole)
    assert [torch.equal(x.grad, y) for x, y in zip((hidden, weight), expected, strict=True)] == [True, True]


@devices
def test_gradients_scale_with_what_is_made_of_the_loss(device):
    hidden, weight, labels = problem(N=16, D=8, V=11, device=device)

    def gradients(factor, upstream=None):
        mean = linear_cross_entropy(hidden, weight, labels).mean
        return torch.autograd.grad(factor * mean if factor != 1 else mean, (hidden, weight), upstream)

    plain, unit, doubled = gradients(1), gradients(1, unit_gradient(hidden.device)), gradients(2)
    for one, other, double in zip(plain, unit, doubled, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(2 * one, double)


@devices
def test_gradients_are_made_where_they_are_wanted_alone(device, monkeypatch):
    hidden, weight, labels = problem(N=16, D=8, V=11, device=device)
    expected, losses = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels).mean, (hidden, weight)), []
    products, product = [], linear_loss._product
    monkeypatch.setattr(linear_loss, "_product", lambda a, b: products.append(1) or product(a, b))
    for needs_hidden, needs_weight in ((True, False), (False, True)):
        own = hidden.detach().requires_grad_(needs_hidden), weight.detach().requires_grad_(needs_weight)
        mean, of_each = linear_cross_entropy(*own, labels)
        losses.append(of_each)
        mean.backward()
        for x, gradient in zip(own, expected, strict=True):
            assert x.grad is None if not x.requires_grad else torch.equal(x.grad, gradient)
    assert len(products) == 2
    with torch.no_grad():
        mean, of_each = linear_cross_entropy(hidden, weight, labels)
    assert len(products) == 2
    assert not mean.requires_grad
    assert all(torch.equal(of_each, other) for other in losses)


@devices
def test_under_autocast_the_loss_is_fp32_of_logits_in_half_precision(device, monkeypatch):
    hidden, weight, labels = problem(N=16, D=8, V=11, device=device)
    products, product = [], linear_loss._product
    monkeypatch.setattr(linear_loss, "_product", lambda a, b: products.append(product(a, b)) or products[-1])
    with torch.autocast(device, torch.bfloat16):
        mean, losses = linear_cross_entropy(hidden, weight, labels)
        expected = with_all_logits(hidden, weight, labels)
        # As a weight that autocast left in fp32, and states that a layer has made in bf16.
        mixed = linear_cross_entropy(hidden.bfloat16(), weight, labels).losses
    assert mean.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected[1], rtol=1e-6, atol=1e-6)
    assert torch.equal(mixed, losses)
    # What is summed over chunks was never rounded to bf16.
    assert {x.dtype for x in products} == {torch.float32}
    assert [x.dtype for x in torch.autograd.grad(mean, (hidden, weight))] == [torch.float32] * 2
    in_fp64 = problem(N=16, D=8, V=11, dtype=torch.float64, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert linear_cross_entropy(*in_fp64).mean.dtype == torch.float64


def test_a_second_derivative_and_the_transforms_of_torch_func_are_refused():
    hidden, weight, labels = problem(N=16, D=8, V=11)
    mean = linear_cross_entropy(hidden, weight, labels).mean
    with pytest.raises(RuntimeError, match=r"^linear_cross_entropy: differentiable once, .* create_graph=True"):
        torch.autograd.grad(mean, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^linear_cross_entropy: torch\.func"):
        torch.func.grad(lambda x: linear_cross_entropy(x, weight, labels).mean)(hidden)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden": torch.ones(4)}, r"^hidden: got torch\.float32 \[4\], expected floating point \[N, D\]"),
        ({"hidden": torch.ones(4, 3).long()}, r"^hidden: got torch\.int64 \[4, 3\], expected floating point"),
        ({"weight": torch.tensor(1.0)}, r"^weight: got torch\.float32 \[\], expected floating point \[V, 3\]"),
        ({"weight": torch.ones(5, 4)}, r"^weight: got torch\.float32 \[5, 4\], expected floating point \[V, 3\]"),
        ({"weight": torch.ones(5, 3).double()}, r"^weight: got torch\.float64, expected torch\.float32"),
        ({"labels": torch.ones(3).long()}, r"^labels: got torch\.int64 \[3\], expected torch\.int64 \[4\]"),
        ({"labels": torch.ones(4)}, r"^labels: got torch\.float32 \[4\], expected torch\.int64 \[4\]"),
        ({"labels": torch.tensor([0, 4, 5, 1])}, r"^labels: got 5 at 2, expected one of the 5 classes or -100"),
        ({"labels": torch.tensor([0, -1, 5, 1])}, r"^labels: got -1 at 1, expected one of the 5 classes or -100"),
        ({"rows_per_chunk": 0}, r"^rows_per_chunk: got 0, expected >= 1"),
    ],
)
def test_what_does_not_fit_is_named(changes, expected):
    arguments = {"hidden": torch.ones(4, 3), "weight": torch.ones(5, 3), "labels": torch.tensor([0, 4, -100, 1])}
    linear_cross_entropy(**arguments)
    with pytest.raises(ValueError, match=expected):
        linear_cross_entropy(**{**arguments, **changes})


@pytest.mark.gpu
def test_a_captured_loss_waits_for_nothing_and_takes_a_chunks_memory():
    hidden, weight, labels = problem(N=8192, D=256, V=32_000, device="cuda")
    stream = torch.cuda.Stream()

    def run():
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return losses_and_gradients(linear_cross_entropy, hidden, weight, labels, rows_per_chunk=512)

    with torch.cuda.stream(stream):
        expected = run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    # Two gradients in fp32 and a product of the weight's size; all logits in bf16 alone are 524 MB.
    assert torch.cuda.max_memory_allocated() - before < 300e6
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = run()
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
