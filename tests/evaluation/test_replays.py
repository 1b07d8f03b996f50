"""Replayed batches: each size reads its own tokens, few sizes are kept, and scores are those of plain calls."""

import subprocess
import sys

import pytest
import torch


@pytest.fixture
def replays(monkeypatch):
    """The module, whose replays are plain calls that say which size they belong to, as if there was a GPU."""
    from palimpsa.evaluation.models import replays

    made = []

    class PlainCall:
        def __init__(self, function, pool):
            self.function = function
            made.append(pool)

        def __call__(self):
            return self.function()

    monkeypatch.setattr(replays, "Replay", PlainCall)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, len(made)))
    monkeypatch.setattr(replays, "is_replayed", lambda tokens: True)
    monkeypatch.setattr(replays, "made", made, raising=False)
    return replays


def test_a_size_is_replayed_with_what_it_is_called_with(replays):
    call = replays.Replays(lambda tokens: tokens * 2)
    for size in ((2, 3), (1, 3), (2, 3), (2, 3)):
        tokens = torch.randint(0, 9, size)
        assert torch.equal(call(tokens), tokens * 2)
    # Two, that share their memory.
    assert replays.made == [(0, 0), (0, 0)]


def test_the_size_that_was_called_longest_ago_is_let_go(replays):
    call = replays.Replays(lambda tokens: tokens + 1)
    sizes = [torch.zeros(1, n + 1, dtype=torch.int64) for n in range(replays.MAX_SIZES)]
    for tokens in [*sizes, sizes[0], torch.zeros(3, 3, dtype=torch.int64)]:
        call(tokens)
    made = len(replays.made)
    call(sizes[0])
    assert len(replays.made) == made == replays.MAX_SIZES + 1
    call(sizes[1])
    assert len(replays.made) == made + 1


def test_what_cannot_be_captured_is_called_plainly_from_then_on(replays, monkeypatch):
    class TooSmall:
        num_calls = 0

        def __init__(self, function, pool):
            pass

        def __call__(self):
            TooSmall.num_calls += 1
            raise torch.OutOfMemoryError("for a capture")

    monkeypatch.setattr(replays, "Replay", TooSmall)
    call = replays.Replays(lambda tokens: tokens + 1)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    for _ in range(2):
        assert torch.equal(call(tokens), tokens + 1)
    assert TooSmall.num_calls == 1


def test_what_is_wrong_with_the_function_is_raised(replays):
    def function(tokens):
        raise torch.OutOfMemoryError("for the batch")

    with pytest.raises(torch.OutOfMemoryError, match="for the batch"):
        replays.Replays(function)(torch.zeros(2, 3, dtype=torch.int64))


def test_a_process_ends_in_order_while_kernels_are_compiled():
    script = """
import sys, torch
from palimpsa.evaluation.models.scoring import NativeNetwork
from palimpsa.model.language_model import LanguageModel
from palimpsa.mixers import PalimpsaD

model = LanguageModel(11, 64, 4, lambda d_model: PalimpsaD(d_model, num_heads=2, head_k_dim=16, head_v_dim=16),
                      generator=torch.Generator().manual_seed(0))
NativeNetwork(model)._compiling.start()
sys.exit(2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")


def test_a_cpu_calls_plainly():
    from palimpsa.evaluation.models.replays import is_replayed

    assert not is_replayed(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_the_same_replayed_or_not(monkeypatch):
    from palimpsa.evaluation.models import replays
    from palimpsa.evaluation.models.scoring import NativeNetwork, Request, Scorer
    from palimpsa.mixers import PalimpsaD
    from palimpsa.model.language_model import LanguageModel

    def make_mixer(d_model: int) -> PalimpsaD:
        return PalimpsaD(d_model, num_heads=2, head_k_dim=16, head_v_dim=16)

    generator = torch.Generator().manual_seed(0)
    model = LanguageModel(11, 64, 2, make_mixer, init_std=1.0, generator=generator).eval().cuda()
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 200, (60,), generator=draw).tolist()
    wanted = [Request(torch.randint(0, 11, (length,), generator=draw).tolist(), 1) for length in lengths]
    found, made = [], []
    replay = replays.Replay
    monkeypatch.setattr(replays, "Replay", lambda *given: made.append(replay(*given)) or made[-1])
    for most in (replays.MAX_TOKENS, 0):
        monkeypatch.setattr(replays, "MAX_TOKENS", most)
        scores = Scorer(NativeNetwork(model, torch.bfloat16), 4).score(wanted)
        found.append([score.log_likelihood for score in scores])
    assert found[0] == found[1]
    assert any(one._graph is not None for one in made)
