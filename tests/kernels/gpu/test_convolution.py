"""The short convolution in Triton against its definition: in Triton's interpreter, or on the GPU where there is one."""

# B batch, T time, C channels, W taps
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from palimpsa.kernels.convolution import short_convolution as convolve_in_parts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Both sides of a tile of 32 tokens and of 128 channels.
SIZES = [(2, 35, 5, 4), (1, 1, 130, 4), (3, 33, 16, 1), (2, 2, 8, 3), (1, 32, 128, 2)]


def short_convolution(x, weight, bias=None):
    """All channels together."""
    (y,) = convolve_in_parts(x, weight, bias, [x.shape[2]])
    return y


def definition(x, weight, bias):
    """By torch's own convolution, in the arguments' dtype."""
    W = weight.shape[1]
    p = F.conv1d(F.pad(x.transpose(1, 2), (W - 1, 0)), weight[:, None], bias, groups=x.shape[2])
    return F.silu(p).transpose(1, 2)


def arguments(size, dtype, with_bias, *, cut=False):
    """x, weight, bias and the gradient of y; `cut`: x and the gradient are parts of wider tensors."""
    B, T, C, W = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)

    x, dy = (normal(B, T, C + 7)[..., 3 : C + 3] if cut else normal(B, T, C) for _ in range(2))
    return x, normal(C, W), normal(C) if with_bias else None, dy


def gradients(operator, x, weight, bias, dy):
    """y and the gradients of x, weight and bias."""
    inputs = [None if a is None else a.detach().requires_grad_() for a in (x, weight, bias)]
    y = operator(*inputs)
    given = [a for a in inputs if a is not None]
    return [y.detach(), *torch.autograd.grad(y, given, dy)]


def errors(actual, size, dtype, with_bias, **options):
    """Largest error of each result relative to its largest number, and that of the definition in the same dtype."""
    x, weight, bias, dy = arguments(size, dtype, with_bias, **options)
    exact = gradients(definition, *(None if a is None else a.double() for a in (x, weight, bias, dy)))
    found = gradients(actual, x, weight, bias, dy)
    plain = gradients(definition, x, weight, bias, dy)
    assert all(a.dtype == dtype and a.shape == e.shape for a, e in zip(found, exact, strict=True))
    return [
        tuple(((a.double() - e).abs().max() / e.abs().max().clamp(min=1e-30)).item() for a in pair)
        for *pair, e in zip(found, plain, exact, strict=True)
    ]


# Every size with a bias or without one, in turns, and two of them in half precision.
@pytest.mark.parametrize(
    ("size", "with_bias", "dtype"),
    [
        *((size, number % 2 == 0, torch.float32) for number, size in enumerate(SIZES)),
        *((SIZES[0], with_bias, torch.float16) for with_bias in (False, True)),
        *((size, number % 2 == 1, torch.float32) for number, size in enumerate(SIZES[:2])),
    ],
    ids=lambda value: (
        "-".join(f"{n}{v}" for n, v in zip("BTCW", value, strict=True)) if isinstance(value, tuple) else None
    ),
)
def test_agrees_with_the_definition_in_float64(size, with_bias, dtype):
    for own, plain in errors(short_convolution, size, dtype, with_bias):
        assert own <= 2 * plain + 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(8, 500, 512, 4), (512, 128, 264, 4)])
def test_agrees_at_full_size_in_bfloat16(size):
    for own, plain in errors(short_convolution, size, torch.bfloat16, True):
        assert own <= 2 * plain + 1e-5


def test_takes_parts_of_wider_tensors():
    for own, plain in errors(short_convolution, (2, 33, 6, 4), torch.float32, True, cut=True):
        assert own <= 2 * plain + 1e-5


@pytest.mark.parametrize(
    ("widths", "num_tokens", "with_bias"),
    [
        *(((6,), 3, True), ((3, 3), 33, False), ((3, 3), 3, True), ((1, 0, 5), 33, True)),
        *(((8, 140), 3, True), ((8, 140), 3, False)),
    ],
)
def test_parts_are_those_of_the_whole(widths, num_tokens, with_bias):
    def joined(x, weight, bias):
        ys = convolve_in_parts(x, weight, bias, widths)
        assert [y.shape[2] for y in ys] == list(widths)
        assert all(y.is_contiguous() for y in ys)
        return torch.cat(ys, 2)

    arranged = arguments((2, num_tokens, sum(widths), 4), torch.float32, with_bias, cut=True)
    for one, other in zip(gradients(joined, *arranged), gradients(short_convolution, *arranged), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("widths", [(4,), (9,), (3, 4), (7, -1), ()], ids=str)
def test_parts_that_are_not_the_whole_are_an_error(widths):
    x, weight, _, _ = arguments((2, 5, 6, 4), torch.float32, False)
    with pytest.raises(ValueError, match=r"widths: got .*, expected numbers >= 0 that sum up to x's 6 channels"):
        convolve_in_parts(x, weight, None, widths)


def test_takes_a_strided_bias():
    x, weight, bias, dy = arguments((2, 33, 6, 4), torch.float32, True)
    spread = torch.stack([bias, 2 * bias], 1)[:, 0]
    assert not spread.is_contiguous()
    arranged = (x, weight, bias, dy), (x, weight, spread, dy)
    for one, other in zip(*(gradients(short_convolution, *each) for each in arranged), strict=True):
        assert torch.equal(one, other)


def test_a_part_that_nobody_reads_has_no_gradient():
    x, weight, _, dy = arguments((2, 33, 6, 4), torch.float32, False)
    x.requires_grad_()
    first, _ = convolve_in_parts(x, weight, None, (2, 4))
    (dx,) = torch.autograd.grad(first, x, dy[..., :2])
    assert not dx[..., 2:].any()
    assert dx[..., :2].any()


def test_a_tap_that_is_left_out_would_be_seen():
    def broken(x, weight, bias):
        return short_convolution(x, torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:]], 1), bias)

    found = errors(broken, (2, 33, 6, 4), torch.float32, True)
    assert any(own > 2 * plain + 1e-5 for own, plain in found)


def test_the_same_call_gives_the_same_bits():
    x, weight, bias, dy = arguments((2, 35, 5, 4), torch.float32, True)
    first, second = (gradients(short_convolution, x, weight, bias, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("empty", [(0, 5, 3), (2, 0, 3)], ids=str)
def test_nothing_to_convolve(empty):
    x = torch.zeros(empty, device=DEVICE, requires_grad=True)
    weight = torch.ones(3, 4, device=DEVICE, requires_grad=True)
    y = short_convolution(x, weight)
    y.sum().backward()
    assert y.shape == x.grad.shape == torch.Size(empty)
    assert not weight.grad.any()


TRANSFORMS = {
    "jacrev": lambda f, x, w: torch.func.jacrev(f, (0, 1))(x, w),
    "vmap": lambda f, x, w: torch.func.vmap(f, in_dims=(1, 0))(torch.stack([x, 2 * x], 1), torch.stack([w, -w])),
    "vmap of grad": lambda f, x, w: torch.func.vmap(
        torch.func.grad(lambda *args: f(*args).square().sum(), (0, 1)), in_dims=(0, None)
    )(torch.stack([x, 2 * x]), w),
    "vmap of jacrev": lambda f, x, w: torch.func.vmap(torch.func.jacrev(f), in_dims=(None, 1))(
        x, torch.stack([w, 2 * w], 1)
    ),
    "jacobian": lambda f, x, w: torch.autograd.functional.jacobian(f, (x, w), vectorize=True),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("widths", "with_bias"), [((2,), True), ((1, 0, 2), False)])
def test_transforms_are_those_of_the_definition(transform, widths, with_bias):
    # In the interpreter each entry of a Jacobian is a kernel of its own.
    x, weight, bias, _ = arguments((1, 3, sum(widths), 2), torch.float32, with_bias)

    def joined(x, weight):
        return torch.cat(convolve_in_parts(x, weight, bias, widths), 2)

    found, expected = (
        TRANSFORMS[transform](f, x, weight) for f in (joined, lambda x, weight: definition(x, weight, bias))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.func.vmap(joined, in_dims=(0, None))(x[None][:0], weight).shape == (0, *x.shape)


@pytest.mark.parametrize("transform", [torch.func.hessian, torch.func.jacfwd])
def test_a_second_and_a_forward_derivative_are_one_clear_error(transform):
    x, weight, _, _ = arguments((1, 2, 3, 2), torch.float32, False)
    with pytest.raises(RuntimeError, match="short_convolution is differentiable once, and backwards"):
        transform(lambda x: short_convolution(x, weight).sum())(x)
    leaf = x.requires_grad_()
    (first,) = torch.autograd.grad(short_convolution(leaf, weight).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="short_convolution is differentiable once, and backwards"):
        first.sum().backward()


def test_the_operator_itself_has_rules_of_vmap():
    x, weight, bias, dy = arguments((2, 4, 5, 3), torch.float32, True)
    operators = torch.ops.palimpsa
    for bias_or_none in (bias, None):
        found = torch.func.vmap(lambda x, b=bias_or_none: operators.short_convolution.default(x, weight, b, [2, 3]))(
            torch.stack([x, 2 * x])
        )
        expected = operators.short_convolution.default(2 * x, weight, bias_or_none, [2, 3])
        torch.testing.assert_close([y[1] for y in found], expected)
        found = torch.func.vmap(
            lambda dy, b=bias_or_none: operators.short_convolution_backward.default(x, weight, b, [dy])
        )(torch.stack([dy, 2 * dy]))
        expected = operators.short_convolution_backward.default(x, weight, bias_or_none, [2 * dy])
        torch.testing.assert_close([y[1] for y in found], list(expected))


def test_operator_is_registered_soundly():
    x, weight, bias, _ = arguments((2, 9, 4, 4), torch.float32, True)
    torch.library.opcheck(torch.ops.palimpsa.short_convolution.default, (x, weight, bias, [1, 3]))
    torch.library.opcheck(
        torch.ops.palimpsa.short_convolution.default, (x.requires_grad_(), weight.requires_grad_(), None, [4])
    )
