"""Every wrong argument is one clear error that names it."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import sys

import pytest
import torch

from palimpsa.kernels import PalimpsaState, palimpsa, palimpsa_chunked, palimpsa_reference, palimpsa_step

OPERAND_ERROR = sys.modules[palimpsa_chunked.__module__.replace("chunked", "validation")].OperandError
NAMES = ("q", "k", "v", "beta", "g", "importance_prior")
B, T, H, K, V = SHAPE = (2, 5, 3, 4, 6)


def nan_in(x):
    x = x.clone()
    x.view(-1)[-1] = torch.nan
    return x


def state_of(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)


# (argument, change, error, words of the message)
WRONG_TENSORS = [
    ("q", lambda x: x.tolist(), TypeError, r"q must be a torch.Tensor, got list"),
    ("g", lambda x: None, TypeError, r"g must be a torch.Tensor, got NoneType"),
    ("beta", lambda x: 0.0, TypeError, r"beta must be a torch.Tensor, got float"),
    ("q", lambda x: x[0], ValueError, r"q has shape \(5, 3, 4\), expected 4 dimensions \[B, T, H, K\]"),
    ("v", lambda x: x[..., None], ValueError, r"v has shape .*expected 4 dimensions \[B, T, H, V\]"),
    ("q", lambda x: x[..., :0], ValueError, r"q has shape .*K >= 1"),
    ("k", lambda x: x[:, :4], ValueError, r"k has shape \(2, 4, 3, 4\), expected \[B, T, H, K\] = \(2, 5, 3, 4\)"),
    ("k", lambda x: x[..., :3], ValueError, r"k has shape"),
    ("v", lambda x: x[:1], ValueError, r"v has shape \(1, 5, 3, 6\), expected \[B, T, H, V\] = \(2, 5, 3, 6\)"),
    (
        "beta",
        lambda x: x[..., :4],
        ValueError,
        r"beta has shape \(2, 5, 3, 4\), expected \[B, T, H, G\] = \(2, 5, 3, G\).*G a divisor of V = 6",
    ),
    ("beta", lambda x: x.repeat(1, 1, 1, 2), ValueError, r"beta has shape \(2, 5, 3, 12\), .*G a divisor of V = 6"),
    ("beta", lambda x: x[..., :0], ValueError, r"beta has shape \(2, 5, 3, 0\), .*G a divisor of V = 6"),
    ("beta", lambda x: x[0], ValueError, r"beta has shape \(5, 3, 6\), expected \[B, T, H, G\]"),
    ("beta", lambda x: x[0, 0, 0, 0], ValueError, r"beta has shape \(\), expected \[B, T, H, G\]"),
    ("g", lambda x: x[..., None], ValueError, r"g has shape \(2, 5, 3, 1\), expected \[B, T, H\] = \(2, 5, 3\)"),
    ("g", lambda x: x.transpose(1, 2), ValueError, r"g has shape \(2, 3, 5\)"),
    ("importance_prior", lambda x: x[0], ValueError, r"importance_prior has shape \(\), expected \[H\] = \(3,\)"),
    ("q", lambda x: x.long(), TypeError, r"q has dtype int64, expected float64, float32, bfloat16, float16"),
    ("k", lambda x: x.double(), TypeError, r"k has dtype float64, expected float32, the dtype of q"),
    ("v", lambda x: x.bfloat16(), TypeError, r"v has dtype bfloat16, expected float32, the dtype of q"),
    ("beta", lambda x: x.half(), TypeError, r"beta has dtype float16, expected float32"),
    ("g", lambda x: x.bfloat16(), TypeError, r"g has dtype bfloat16, expected float32.*small decays"),
    ("g", lambda x: x.double(), TypeError, r"g has dtype float64, expected float32"),
    ("importance_prior", lambda x: x.int(), TypeError, r"importance_prior has dtype int32"),
    ("v", lambda x: x.to("meta"), ValueError, r"v is on device meta, expected cpu"),
    ("g", lambda x: -x, ValueError, r"g must be <= 0 everywhere"),
    ("g", nan_in, ValueError, r"g contains NaN, expected <= 0"),
    ("beta", lambda x: x - 1, ValueError, r"beta must be >= 0 and finite everywhere.*its minimum is -"),
    ("beta", nan_in, ValueError, r"beta contains NaN, expected >= 0"),
    (
        "importance_prior",
        lambda x: x * 0,
        ValueError,
        r"importance_prior must be > 0 and finite.*its minimum is 0",
    ),
    ("importance_prior", nan_in, ValueError, r"importance_prior contains NaN"),
    ("q", nan_in, ValueError, r"q contains NaN"),
    ("k", nan_in, ValueError, r"k contains NaN"),
    ("v", nan_in, ValueError, r"v contains NaN"),
]
WRONG_OPTIONS = [
    ({"scale": "1"}, TypeError, r"scale must be a number or None, got str"),
    ({"scale": True}, TypeError, r"scale must be a number or None, got bool"),
    ({"scale": torch.ones(())}, TypeError, r"scale must be a number or None, got Tensor"),
    ({"scale": float("nan")}, ValueError, r"scale must be finite, got nan"),
    ({"scale": float("inf")}, ValueError, r"scale must be finite, got inf"),
    ({"initial_state": torch.zeros(2)}, TypeError, r"initial_state must be a PalimpsaState or a pair"),
    ({"initial_state": (torch.zeros(2),)}, TypeError, r"initial_state must be a PalimpsaState or a pair"),
    ({"initial_state": (1, 2)}, TypeError, r"initial_state.mean must be a torch.Tensor, got int"),
    ({"initial_state": state_of(2, 3, 6, 4)}, ValueError, r"initial_state.mean has shape \(2, 3, 6, 4\), expected"),
    (
        {"initial_state": (torch.zeros(2, 3, 4, 6), torch.ones(2, 3, 4, 5))},
        ValueError,
        r"initial_state.importance has shape \(2, 3, 4, 5\), expected \[B, H, K, G\] = \(2, 3, 4, 6\)",
    ),
    (
        {"initial_state": (torch.zeros(2, 3, 4, 6), torch.ones(2, 3, 4, 1))},
        ValueError,
        r"initial_state.importance has shape \(2, 3, 4, 1\), expected \[B, H, K, G\] = \(2, 3, 4, 6\)",
    ),
    (
        {"beta": None, "initial_state": (torch.zeros(2, 3, 4, 6), torch.ones(2, 3, 4, 4))},
        ValueError,
        r"initial_state.importance has shape \(2, 3, 4, 4\), .*= \(2, 3, 4, G\).*G a divisor of V = 6",
    ),
    (
        {"initial_state": state_of(2, 3, 4, 6, dtype=torch.bfloat16)},
        TypeError,
        r"initial_state.mean has dtype bfloat16, expected float32, float64",
    ),
    (
        {"initial_state": (torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4, 6))},
        ValueError,
        r"initial_state.importance must be > 0 and finite everywhere, its minimum is 0",
    ),
    (
        {"initial_state": (torch.zeros(2, 3, 4, 6), nan_in(torch.ones(2, 3, 4, 6)))},
        ValueError,
        r"initial_state.importance contains NaN",
    ),
    (
        {"initial_state": (nan_in(torch.zeros(2, 3, 4, 6)), torch.ones(2, 3, 4, 6))},
        ValueError,
        r"initial_state.mean contains NaN",
    ),
    (
        {"initial_state": tuple(x.to("meta") for x in state_of(2, 3, 4, 6))},
        ValueError,
        r"initial_state.mean is on device meta, expected cpu",
    ),
    ({"cu_seqlens": [0, 5]}, TypeError, r"cu_seqlens must be a torch.Tensor, got list"),
    ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, r"cu_seqlens needs .* B = 1, got B = 2"),
]
WRONG_BOUNDS = [
    (torch.tensor([[0, 5]]), ValueError, r"cu_seqlens has shape \(1, 2\), expected \[N \+ 1\]"),
    (torch.tensor([0]), ValueError, r"cu_seqlens has shape \(1,\), expected \[N \+ 1\] with N >= 1"),
    (torch.tensor([0.0, 5.0]), TypeError, r"cu_seqlens has dtype float32, expected int64"),
    (torch.tensor([1, 5]), ValueError, r"cu_seqlens must start at 0, got 1"),
    (torch.tensor([0, 4]), ValueError, r"cu_seqlens must end at T = 5, got 4"),
    (torch.tensor([0, 6]), ValueError, r"cu_seqlens must end at T = 5, got 6"),
    (torch.tensor([0, 3, 2, 5]), ValueError, r"cu_seqlens must not decrease, got 3 then 2 at position 2"),
    (torch.tensor([0, 5], device="meta"), ValueError, r"cu_seqlens is on device meta, expected cpu"),
]


@pytest.fixture
def arguments(Problem):
    return {name: Problem(SHAPE, torch.float32)[name] for name in NAMES}


@pytest.fixture(params=["reference", "chunked", "public"])
def operator(request):
    return {"reference": palimpsa_reference, "chunked": palimpsa_chunked, "public": palimpsa}[request.param]


@pytest.mark.parametrize(("name", "change", "error", "message"), WRONG_TENSORS)
def test_wrong_tensors(arguments, operator, name, change, error, message):
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        operator(**arguments)


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
def test_wrong_options(arguments, operator, options, error, message):
    with pytest.raises(error, match=message):
        operator(**{**arguments, **options})


@pytest.mark.parametrize(("cu_seqlens", "error", "message"), WRONG_BOUNDS)
def test_wrong_bounds(arguments, operator, cu_seqlens, error, message):
    one_row = {name: x if x.ndim == 1 else x[:1] for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        operator(**one_row, cu_seqlens=cu_seqlens)


def test_states_are_counted_by_sequences(arguments, operator):
    one_row = {name: x if x.ndim == 1 else x[:1] for name, x in arguments.items()}
    bounds = torch.tensor([0, 2, 5])
    operator(**one_row, cu_seqlens=bounds, initial_state=state_of(2, H, K, V))
    with pytest.raises(ValueError, match=r"initial_state.mean has shape .*one row a sequence, = \(2, 3, 4, 6\)"):
        operator(**one_row, cu_seqlens=bounds, initial_state=state_of(1, H, K, V))


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, "8"])
def test_wrong_chunk_size(arguments, chunk_size):
    with pytest.raises(ValueError, match="chunk_size must be a positive integer or None"):
        palimpsa_chunked(**arguments, chunk_size=chunk_size)


def test_unknown_options_are_errors(arguments, operator):
    with pytest.raises(TypeError, match="output_state"):
        operator(**arguments, output_state=True)


def test_legal_edges(arguments, operator):
    arguments["g"] = torch.full_like(arguments["g"], -torch.inf)
    arguments["beta"] = arguments["beta"] * 0
    operator(**arguments)
    arguments["g"] = torch.zeros_like(arguments["g"])
    operator(**arguments, scale=-2)
    operator(**{**arguments, "importance_prior": arguments["importance_prior"].bfloat16()})


def test_a_state_may_have_another_precision(arguments, operator):
    expected = operator(**arguments, initial_state=state_of(B, H, K, V))
    out = operator(**arguments, initial_state=state_of(B, H, K, V, dtype=torch.float64), output_final_state=True)
    torch.testing.assert_close(out.o, expected.o)
    assert out.final_state.mean.dtype == torch.float32


def step_arguments(arguments):
    return {name: x if x.ndim == 1 else x[:, 0] for name, x in arguments.items()}


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("q", lambda x: x[:, None], ValueError, r"q has shape \(2, 1, 3, 4\), expected 3 dimensions \[B, H, K\]"),
        ("q", lambda x: 1, TypeError, r"q must be a torch.Tensor, got int"),
        ("k", lambda x: x[:1], ValueError, r"k has shape \(1, 3, 4\), expected \[B, H, K\] = \(2, 3, 4\)"),
        ("v", lambda x: x[:, :1], ValueError, r"v has shape"),
        ("beta", lambda x: x[..., :4], ValueError, r"beta has shape \(2, 3, 4\), expected \[B, H, G\] = \(2, 3, G\)"),
        ("g", lambda x: x[..., None], ValueError, r"g has shape \(2, 3, 1\), expected \[B, H\] = \(2, 3\)"),
        ("g", lambda x: -x, ValueError, r"g must be <= 0"),
        ("v", nan_in, ValueError, r"v contains NaN"),
    ],
)
def test_wrong_tensors_of_a_step(arguments, name, change, error, message):
    arguments = step_arguments(arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        palimpsa_step(**arguments, state=PalimpsaState(*state_of(B, H, K, V)))


SHARED = torch.ones(B * H * K * V)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (None, TypeError, r"state must be a PalimpsaState or a pair \(mean, importance\), got NoneType"),
        (state_of(1, H, K, V), ValueError, r"state.mean has shape \(1, 3, 4, 6\), expected \[B, H, K, V\]"),
        (
            (torch.zeros(B, H, K, V), torch.ones(B, H, K, 2)),
            ValueError,
            r"state.importance has shape \(2, 3, 4, 2\), expected \[B, H, K, G\] = \(2, 3, 4, 6\)",
        ),
        (state_of(B, H, K, V, dtype=torch.float64), TypeError, r"state.mean has dtype float64, expected float32"),
        (
            (torch.zeros(B, H, K, V), torch.ones(1, 1, 1, 1).expand(B, H, K, V)),
            ValueError,
            r"state.importance is an expanded view",
        ),
        (
            (SHARED.view(B, H, K, V), SHARED.view(B, H, K, V)),
            ValueError,
            r"state.mean and state.importance lie in the same memory",
        ),
        (
            (torch.zeros(B, H, K, V), torch.ones(B, H, K, 7).as_strided((B, H, K, V), (84, 28, 3, 1))),
            ValueError,
            r"state.importance has entries that share memory \(strides \(84, 28, 3, 1\)\)",
        ),
    ],
)
def test_wrong_state_of_a_step(arguments, state, error, message):
    with pytest.raises(error, match=message):
        palimpsa_step(**step_arguments(arguments), state=state)


def test_one_tensor_is_no_state():
    state = torch.ones(2, 3, 4, 5)
    args = [x if x.ndim == 1 else x[:, 0] for x in (torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))]
    value, g = torch.ones(2, 3, 5), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="one tensor, expected two"):
        palimpsa_step(*args, value, value, g, torch.ones(3), (state, state))


INF, NAN = float("inf"), float("nan")
TINY = 1e-44
# Of each operand, what it must not hold; beyond a float32 where it may be wider than what is computed in.
OUT_OF_RANGE = {
    "q": (NAN, INF, -INF),
    "k": (NAN, INF, -INF),
    "v": (NAN, INF, -INF),
    "beta": (NAN, INF, -INF, -TINY),
    "g": (NAN, INF, TINY),
    "importance_prior": (NAN, INF, -INF, 0.0, -TINY, 1e-46, 1e39),
    "mean": (NAN, INF, -INF, 1e39, -1e39),
    "importance": (NAN, INF, -INF, 0.0, -TINY, 1e-46, 1e39),
}
# In half precision nothing is as small.
HALF_TINY = {torch.float16: 6e-8, torch.bfloat16: 1e-40}
each_wrong_value = pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)


def with_value(Problem, shape, dtype, name, value):
    """Arguments and state of a call, one number of one of which is `value`."""
    problem = Problem(shape, dtype)
    wide = name in ("importance_prior", "mean", "importance")
    x = problem[name].double() if wide else problem[name].clone()
    number = HALF_TINY.get(x.dtype, TINY) * (value / TINY) if abs(value) == TINY else value
    x.view(-1)[x.numel() // 2] = number
    assert x.view(-1)[x.numel() // 2] != 0 or value == 0
    problem.tensors[name] = x
    return problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_wrong_value
def test_a_number_out_of_range_is_one_error_that_names_its_operand(Problem, operator, name, value, dtype):
    """A run that diverged would have trained on, with gradients that are NaN."""
    problem = with_value(Problem, SHAPE, dtype, name, value)
    argument = f"initial_state.{name}" if name in ("mean", "importance") else name
    with pytest.raises(OPERAND_ERROR, match=rf"^{argument} (must be|contains NaN)"):
        problem.run(operator)


@each_wrong_value
def test_a_number_out_of_range_is_an_error_of_a_step(Problem, monkeypatch, name, value):
    """Of the state only where it is asked for."""
    problem = with_value(Problem, (2, 1, 3, 4, 6), torch.float32, name, value)
    is_state = name in ("mean", "importance")
    state = tuple(x.float() for x in problem.state)
    token = [x if x.ndim == 1 else x[:, 0] for x in problem.args]
    if is_state:
        palimpsa_step(*token, tuple(x.clone() for x in state))
        monkeypatch.setenv("PALIMPSA_DEBUG", "1")
    argument = f"state.{name}" if is_state else name
    with pytest.raises(OPERAND_ERROR, match=rf"^{argument} (must be|contains NaN)"):
        palimpsa_step(*token, state)


def test_the_edges_of_every_range_are_taken(Problem, operator):
    problem = Problem(SHAPE, torch.float32)
    problem["beta"].view(-1)[:3] = torch.tensor([0.0, -0.0, TINY])
    problem["g"].view(-1)[:4] = torch.tensor([0.0, -0.0, -INF, -TINY])
    problem["importance_prior"][0] = 1e-30
    problem["importance"].view(-1)[:2] = torch.tensor([1e-30, 1e30])
    problem.run(operator)


def test_importances_that_the_triton_kernels_do_not_take_are_named(Problem, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("PALIMPSA_PATH", "triton")
    for name, argument in (("importance_prior", "importance_prior"), ("importance", "initial_state.importance")):
        for value in (1e-16, 1e15):
            problem = Problem((1, 1, 1, 4, 6), torch.float32)
            problem[name].view(-1)[0] = value
            with pytest.raises(OPERAND_ERROR, match=rf"^{argument} must be from 1e-15 to 1e14 .*path triton"):
                problem.run(palimpsa)
        for value in (1e-15, 1e14):
            problem = Problem((1, 1, 1, 4, 6), torch.float32)
            problem[name].view(-1)[0] = value
            problem.run(palimpsa)


def test_debug_mode_can_be_switched_off(arguments, operator, monkeypatch):
    arguments["g"] = -arguments["g"]
    for setting in ("1", ""):
        monkeypatch.setenv("PALIMPSA_DEBUG", setting)
        with pytest.raises(ValueError, match="g must be <= 0"):
            operator(**arguments)
    monkeypatch.setenv("PALIMPSA_DEBUG", "0")
    operator(**arguments)
    monkeypatch.setenv("PALIMPSA_DEBUG", "yes")
    with pytest.raises(ValueError, match="PALIMPSA_DEBUG is 'yes', expected 0 or 1"):
        operator(**arguments)


def test_debug_mode_is_off_where_reading_a_value_would_wait():
    module = sys.modules[palimpsa_chunked.__module__.replace("chunked", "validation")]
    assert module.debug_enabled(torch.device("cpu"))
    assert not module.debug_enabled(torch.device("cuda"))
    assert not module.debug_enabled(torch.device("meta"))
