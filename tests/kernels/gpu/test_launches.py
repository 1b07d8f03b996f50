"""How the Triton path cuts its work: groups of heads, segments, offsets and grids."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import importlib
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")


def kernels(name):
    """A module of the kernels' room: "validation", "gpu.forward"."""
    return importlib.import_module(f"palimpsa.kernels.{name}")


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    options: dict


@pytest.fixture
def recorded_launches(monkeypatch, no_rehearsals):
    """What the forward and the backward launch, written down and not run: results are what lay in memory."""
    launches = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: launches.append(Launch(self.kernel, grid, options))

    for module in (kernels("gpu.forward"), kernels("gpu.backward")):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(name))
    return launches


def test_groups_of_heads_fit_a_grid():
    assert kernels("gpu.forward").slice_heads(7, 3) == [(0, 2), (2, 2), (4, 3)]
    groups = kernels("gpu.forward").slice_heads(2**17, 2**17)
    assert sum(size for _, size in groups) == 2**17
    assert max(size for _, size in groups) < 2**16


@pytest.mark.parametrize("shape", [(1, 33, 3, 5, 8), (1, 3, 3, 20, 40)])
def test_heads_done_in_groups_change_nothing(
    Problem, assert_equal, outputs_and_gradients, triton, short_segments, no_rehearsals, monkeypatch, shape
):
    problem = Problem(shape, torch.float32)
    expected = outputs_and_gradients(problem, triton)
    planned = []
    for name, function in (("forward", "plan_forward"), ("backward", "plan_backward")):
        module = kernels(f"gpu.{name}")
        plan = getattr(module, function)

        def in_groups(*sizes, plan=plan):
            planned.append(plan(*sizes))
            return planned[-1]._replace(head_slices=[(0, 1), (1, 2)])

        monkeypatch.setattr(module, function, in_groups)
    for found, wanted in zip(outputs_and_gradients(problem, triton), expected, strict=True):
        assert_equal(found, wanted, 0)
    assert {tuple(plan.head_slices) for plan in planned} == {((0, 3),)}


def test_heads_are_grouped_to_keep_to_the_scratch_memory(monkeypatch):
    forward, backward = kernels("gpu.forward"), kernels("gpu.backward")
    monkeypatch.setattr(forward, "SCRATCH_BYTES", 2**20)
    for plan in (forward.plan_forward(2**15, 8, 16, 96, 192), backward.plan_backward(2**15, 8, 16, 96, 192, 1584)):
        heads = [h for first, number in plan.head_slices for h in range(first, first + number)]
        assert heads == list(range(16))
        assert len(plan.head_slices) > 1


def test_sequences_are_cut_where_that_fills_the_gpu():
    plan = kernels("gpu.backward").plan_backward
    # 1,584 programs. Alone: 1,024 of them; 512 rows of heads that do not fit the scratch memory at once; 16.
    assert plan(2**16, 128, 8, 16, 32, 1584).segment_size == 512
    assert plan(2**18, 64, 16, 96, 192, 1584).segment_size == 128
    assert plan(2**15, 1, 16, 48, 96, 1584).segment_size == 128


@pytest.mark.parametrize("shape", [(2, 33, 1, 5, 8), (1, 3, 2, 20, 40)])
def test_offsets_of_64_bits_give_the_same(
    Problem, assert_equal, outputs_and_gradients, triton, short_segments, monkeypatch, shape
):
    problem = Problem(shape, torch.float32)
    expected = outputs_and_gradients(problem, triton)
    # As if every tensor were too large for 32 bits.
    monkeypatch.setattr(kernels("gpu.primitives"), "LARGE", 0)
    for found, wanted in zip(outputs_and_gradients(problem, triton), expected, strict=True):
        assert_equal(found, wanted, 0)


@pytest.mark.parametrize(
    ("kernel", "entries"),
    [
        # B T H max(4 K, V): the planes of widened keys; and for gradients of q and k as many parts as tiles of V.
        ("_read_kernel", 2 * 5 * 3 * 4 * 20),
        ("_gradients_kernel", 2 * 5 * 3 * max(4 * 20, 2 * 20)),
        ("_flow_kernel", 2 * 5 * 3 * max(4 * 20, 2 * 20)),
    ],
)
def test_offsets_are_of_64_bits_from_the_first_size_that_needs_them(
    Problem, triton, short_segments, recorded_launches, monkeypatch, kernel, entries
):
    num_tokens = 5 if kernel != "_flow_kernel" else 40
    problem = Problem((2, num_tokens, 3, 20, 40), torch.float32)
    for limit, expected in ((entries * num_tokens // 5, True), (entries * num_tokens // 5 + 1, False)):
        monkeypatch.setattr(kernels("gpu.primitives"), "LARGE", limit)
        recorded_launches.clear()
        problem.gradients(triton)
        found = {launch.options["IS_LARGE"] for launch in recorded_launches if launch.kernel == kernel}
        assert found == {expected}


@pytest.mark.parametrize(
    ("shape", "num_sequences"),
    [((2, 300, 2, 16, 16), 2), ((1, 1, 1, 16, 33), 1), ((1, 512, 1, 255, 256), 64), ((1, 600, 3, 256, 256), 1)],
)
def test_no_grid_is_larger_than_the_check_of_sizes_counts(recorded_launches, monkeypatch, device, shape, num_sequences):
    B, T, H, K, V = shape
    forward, backward = kernels("gpu.forward"), kernels("gpu.backward")
    q, v = torch.zeros(B, T, H, K, device=device), torch.zeros(B, T, H, V, device=device)
    cu_seqlens = None if num_sequences == B else torch.arange(0, T + 1, T // num_sequences, device=device)
    args = (q, q, v, v, torch.zeros(B, T, H, device=device), torch.ones(H, device=device), 1.0)
    forward.forward(*args, None, None, False, False, cu_seqlens)
    backward.backward(*args, None, None, None, None, cu_seqlens, v, None, None, None)
    validation = kernels("validation")
    validation.check_triton_sizes(B, T, H, K, V, num_sequences)
    grids = [launch.grid for launch in recorded_launches]
    assert all(size < 2**16 for grid in grids for size in grid[1:])
    # With as many programs as there were it has to refuse.
    monkeypatch.setattr(validation, "_MAX_GRID", max(grid[0] for grid in grids))
    with pytest.raises(ValueError, match="programs of the path triton"):
        validation.check_triton_sizes(B, T, H, K, V, num_sequences)


def test_sizes_above_the_limit_are_errors(Problem, triton):
    for shape, message in (
        ((1, 1, 1, 257, 1), "q has K = 257.*K <= 256"),
        ((1, 1, 1, 1, 300), "v has V = 300.*<= 256"),
    ):
        with pytest.raises(ValueError, match=message):
            triton(*Problem(shape, torch.float32).args)
    check = kernels("validation").check_triton_sizes
    check(2**8, 2**20, 16, 256, 256, 2**8)
    with pytest.raises(ValueError, match=r"programs of the path triton, which takes less than 2\^31"):
        check(2**11, 2**20, 16, 8, 8, 2**11)
