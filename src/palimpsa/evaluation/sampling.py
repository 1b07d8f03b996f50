"""Text that a model writes, token by token, from a memory of fixed size."""

# V vocabulary, n tokens of a prompt

from __future__ import annotations

import torch

from palimpsa.model.language_model import LanguageModel


@torch.no_grad()
def sample_tokens(
    model: LanguageModel,
    prompt: list[int],
    num_tokens: int,
    *,
    vocab_size: int,
    end_of_text: int,
    temperature: float,
    generator: torch.Generator,
) -> list[int]:
    """Tokens that follow a prompt, drawn from the model's distribution.

    Args:
        prompt: n >= 1 tokens in [0, vocab_size).
        num_tokens: at most; fewer where the text ends.
        vocab_size: of the tokenizer: what a model has beyond it, to be a multiple of something, is never drawn.
        end_of_text: ends the text, and is not returned.
        temperature: >= 0: logits are divided by it; 0 takes the most likely token.
        generator: of the randomness, on the CPU.

    Raises:
        ValueError: for an empty prompt, a token beyond the vocabulary, or a temperature below 0.
    """
    if not prompt or not all(0 <= token < vocab_size for token in prompt):
        raise ValueError(f"prompt: got {prompt[:8]}, expected at least one token, each in [0, {vocab_size})")
    if not temperature >= 0:
        raise ValueError(f"temperature: got {temperature}, expected >= 0")
    caches = model.new_caches(batch_size=1)
    logits = model(torch.tensor([prompt]), caches=caches)[0, -1]
    written: list[int] = []
    while len(written) < num_tokens:
        known = logits[:vocab_size].double()
        if temperature == 0:
            token = int(known.argmax())
        else:
            token = int(torch.multinomial((known / temperature).softmax(0), 1, generator=generator))
        if token == end_of_text:
            break
        written.append(token)
        logits = model.step(torch.tensor([token]), caches)[0]
    return written
