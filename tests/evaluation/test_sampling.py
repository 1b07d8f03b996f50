"""Tokens drawn from a model: its own distribution, the same for the same seed, and none that the tokenizer lacks."""

import pytest
import torch

from palimpsa.evaluation.sampling import sample_tokens
from palimpsa.mixers import PalimpsaD
from palimpsa.model.language_model import LanguageModel

OPTIONS = {"vocab_size": 11, "end_of_text": 10, "temperature": 1.0}


def small_model() -> LanguageModel:
    def make_mixer(d_model: int) -> PalimpsaD:
        return PalimpsaD(d_model, num_heads=2, head_k_dim=4, head_v_dim=4)

    return LanguageModel(16, 8, 2, make_mixer, init_std=1.0, generator=torch.Generator().manual_seed(0)).eval()


def sampled(model, prompt=(1, 2, 3), num_tokens=20, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return sample_tokens(model, list(prompt), num_tokens, generator=generator, **{**OPTIONS, **options})


def test_the_most_likely_tokens_are_those_of_the_whole_text_read_anew():
    model, text = small_model(), [1, 2, 3]
    written = sampled(model, temperature=0.0, end_of_text=-1)
    assert len(written) == 20
    for token in written:
        assert token == int(model(torch.tensor([text]))[0, -1, :11].argmax())
        text.append(token)


def test_a_seed_says_what_is_written():
    model = small_model()
    assert sampled(model, seed=1) == sampled(model, seed=1) != sampled(model, seed=2)


def test_what_the_tokenizer_lacks_is_never_drawn_and_the_end_ends_it():
    model = small_model()
    texts = [sampled(model, seed=seed, temperature=5.0) for seed in range(40)]
    assert {token for text in texts for token in text} <= set(range(10))
    assert min(map(len, texts)) < 20


def test_tokens_come_as_often_as_they_are_likely():
    model = small_model()
    likely = model(torch.tensor([[1, 2, 3]]))[0, -1, :11].softmax(0)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        sample_tokens(model, [1, 2, 3], 1, generator=generator, **{**OPTIONS, "end_of_text": -1}) for _ in range(400)
    ]
    share = torch.bincount(torch.tensor(drawn).flatten(), minlength=11) / 400
    # Four standard errors of a half.
    assert (share - likely).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ()}, r"prompt: got \[\]"),
        ({"prompt": (11,)}, r"in \[0, 11\)"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(small_model(), **options)
