"""Token shards of no text: what a training step costs does not depend on what the tokens say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from palimpsa.text.manifest import TokenizerFacts
from palimpsa.text.shards import ShardWriter

# Tokens of a document, its end included: as many documents in each octave.
SHORTEST, LONGEST = 32, 8_192
# Of Zipf's law as Mandelbrot has it: of rank r, in proportion to 1 / (r + SHIFT).
SHIFT = 2.7


def write_random_text(directory: Path, *, vocab_size: int, num_tokens: int, num_validation: int, seed: int) -> None:
    """Writes train/ and validation/ as scripts/prepare_text.py does.

    Args:
        directory: of both.
        vocab_size: >= 2; its last id ends a document.
        num_tokens, num_validation: of each split at least, > 0; a document more at most.
        seed: of the tokens, >= 0.
    """
    facts = TokenizerFacts("random tokens", "none", "0" * 64, vocab_size, vocab_size - 1)
    splits = {"train": num_tokens, "validation": num_validation}
    for place, (split, wanted) in enumerate(splits.items()):
        generator = np.random.default_rng((seed, place))
        writer = ShardWriter(directory / split, tokenizer=facts)
        while writer.num_tokens < wanted:
            tokens, lengths = _documents(generator, vocab_size, wanted - writer.num_tokens)
            writer.add_documents(tokens, lengths, lengths)
        writer.finish(source={"name": "random", "seed": seed})


def _documents(generator: np.random.Generator, vocab_size: int, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents of `at_most` tokens together, or one that is longer: [tokens], and their lengths [documents]."""
    octaves = np.log([SHORTEST, LONGEST])
    lengths = np.exp(generator.uniform(*octaves, size=1 + at_most // LONGEST)).astype(np.int64)
    weights = 1 / (np.arange(1, vocab_size) + SHIFT)
    shares = np.cumsum(weights / weights.sum())
    # Rounding may leave the last share below 1.
    tokens = np.minimum(np.searchsorted(shares, generator.random(int(lengths.sum()))), vocab_size - 2)
    tokens[np.cumsum(lengths) - 1] = vocab_size - 1
    return tokens, lengths
