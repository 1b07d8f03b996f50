"""Scores: right to the number, and of the request alone, whatever batch it is in and whatever comes before it."""

import numpy as np
import pytest
import torch

from palimpsa.config.errors import ConfigError

V = 11


# Imported late: see conftest.py.
def scorer_of(network, batch_size=4, **options):
    from palimpsa.evaluation.models.scoring import Scorer

    return Scorer(network, batch_size, **options)


def requests(num=23, seed=0, longest=150):
    from palimpsa.evaluation.models.scoring import Request

    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, longest, num).tolist()
    return [Request(draw.integers(0, V, length).tolist(), int(draw.integers(1, min(length, 20)))) for length in lengths]


def native_network():
    from palimpsa.evaluation.models.scoring import NativeNetwork
    from palimpsa.mixers import PalimpsaD
    from palimpsa.model.language_model import LanguageModel

    def make_mixer(d_model: int) -> PalimpsaD:
        return PalimpsaD(d_model, num_heads=2, head_k_dim=4, head_v_dim=4)

    generator = torch.Generator().manual_seed(0)
    return NativeNetwork(LanguageModel(V, 16, 2, make_mixer, init_std=1.0, generator=generator).eval())


def transformers_network():
    from transformers import LlamaConfig, LlamaForCausalLM

    from palimpsa.evaluation.models.scoring import TransformersNetwork

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TransformersNetwork(LlamaForCausalLM(LlamaConfig(vocab_size=V, initializer_range=1.0, **sizes)).eval())


def largest_difference(network) -> float:
    """Of the losses of the same requests in batches of 1, 5 and all of them, and in another order."""
    wanted = requests()
    expected = [score.losses for score in scorer_of(network, 1).score(wanted)]
    order = np.random.default_rng(1).permutation(len(wanted))
    found = []
    for batch_size in (5, len(wanted)):
        found.append([score.losses for score in scorer_of(network, batch_size).score(wanted)])
        shuffled = scorer_of(network, batch_size).score([wanted[place] for place in order])
        found.append([shuffled[place].losses for place in np.argsort(order)])
    return max(
        float(np.abs(one - other).max()) for losses in found for one, other in zip(losses, expected, strict=True)
    )


# Property 13.
@pytest.mark.parametrize("make", [native_network, transformers_network])
def test_scores_depend_on_neither_the_size_of_a_batch_nor_the_order(make):
    assert largest_difference(make()) < 2e-5


def test_a_model_that_sees_its_neighbours_or_what_is_padded_is_found_out(known_network):
    network = known_network(lambda before: np.zeros(V), V)
    network.logits_at = lambda tokens, rows, positions: (
        lambda places: torch.linspace(0, 1, V) * tokens[rows[places], -1:] + tokens.shape[1] * torch.eye(V)[0]
    )
    assert largest_difference(network) > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_losses_are_those_of_a_known_bigram_model(batch_size, known_network, rules):
    table = np.log(np.random.default_rng(0).dirichlet(np.ones(V), V))
    wanted = requests()
    scores = scorer_of(known_network(rules["bigram"](table), V), batch_size).score(wanted)
    for request, score in zip(wanted, scores, strict=True):
        pairs = list(zip(request.tokens[:-1], request.tokens[1:], strict=True))[-request.num_targets :]
        assert score.losses == pytest.approx([-table[pair] for pair in pairs], abs=1e-6)
        assert score.log_likelihood == pytest.approx(sum(table[pair] for pair in pairs), abs=1e-5)
        assert score.is_greedy == all(table[before].argmax() == after for before, after in pairs)


def test_losses_are_the_models_own(monkeypatch):
    """Also where the logits of a batch are computed in parts."""
    network, wanted = native_network(), requests()
    monkeypatch.setattr("palimpsa.evaluation.models.scoring.TARGETS_AT_A_TIME", 7)
    for request, score in zip(wanted, scorer_of(network).score(wanted), strict=True):
        tokens = torch.tensor([request.tokens])
        with torch.no_grad():
            expected = network._model(tokens).log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
        assert score.losses == pytest.approx(-expected[-request.num_targets :].numpy(), abs=2e-5)


def test_requests_that_differ_in_their_last_token_are_one_row(known_network, rules):
    from palimpsa.evaluation.models.scoring import Request

    network, done = known_network(rules["uniform"](V), V), []
    scorer = scorer_of(network, 8, report=lambda *counts: done.append(counts))
    scores = scorer.score([Request([1, 2, last], 1) for last in range(V)] + [Request([1, 2, 3, 4], 2)])
    assert network.batches == [(2, 3)]
    assert done == [(2, 2)]
    assert [len(score.losses) for score in scores] == [1] * V + [2]


@pytest.mark.parametrize(
    ("tokens", "num_targets", "error"),
    [
        ([1, 2], 2, r"num_targets: got 2 of 2 tokens, expected at least one and fewer than all"),
        ([1, 2], 0, r"num_targets: got 0 of 2 tokens"),
        ([1, V], 1, rf"tokens: got 1 to {V}, expected ids in \[0, {V}\)"),
        ([-1, 2], 1, r"tokens: got -1 to 2"),
    ],
)
def test_a_request_that_cannot_be_is_named(tokens, num_targets, error, known_network, rules):
    from palimpsa.evaluation.models.scoring import Request

    with pytest.raises(ValueError, match=error):
        scorer_of(known_network(rules["uniform"](V), V)).score([Request(tokens, num_targets)])


@pytest.mark.parametrize(
    ("num_fitting", "error"),
    [
        (3, r"evaluation\.batch_size: got 8, too large for the memory of cpu with rows of 14\d tokens; 2 fits"),
        (0, r"evaluation\.max_length: a row of 14\d tokens does not fit into the memory of cpu even alone"),
    ],
)
def test_a_batch_that_is_too_large_says_which_one_fits(num_fitting, error, known_network, rules):
    network = known_network(rules["uniform"](V), V)
    logits_at = network.logits_at

    def with_little_memory(tokens, rows, positions):
        if len(tokens) > num_fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits_at(tokens, rows, positions)

    network.logits_at = with_little_memory
    with pytest.raises(ConfigError, match=error):
        scorer_of(network, 8).score(requests())


def test_a_model_of_learnt_positions_is_not_asked_for_more():
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    from palimpsa.evaluation.models.scoring import Request, TooLongError, TransformersNetwork

    sizes = {"ffn_dim": 16, "hidden_size": 16, "word_embed_proj_dim": 16, "num_attention_heads": 2}
    for model in (
        GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=24, n_embd=16, n_layer=1, n_head=2)),
        OPTForCausalLM(OPTConfig(vocab_size=V, max_position_embeddings=24, num_hidden_layers=1, **sizes)),
    ):
        scorer = scorer_of(TransformersNetwork(model.eval()))
        (score,) = scorer.score([Request([1] * 25, 24)])
        assert len(score.losses) == 24
        with pytest.raises(TooLongError, match=r"the model reads at most 24 tokens, .* got 25; evaluation\.max"):
            scorer.score([Request([1] * 26, 25)])
    assert transformers_network().max_tokens is None
