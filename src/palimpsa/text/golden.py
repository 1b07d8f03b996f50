"""Golden ids: what a tokenizer makes of 20 texts travels with the shards, and is asked again of whoever reads them.

Two libraries make different ids of one tokenizer file, without a word: a model that was trained on the one and is
evaluated with the other reads noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from palimpsa.config.errors import ConfigError
from palimpsa.text.manifest import Manifest, TokenizerFacts

# Each tells apart what tokenizers are known to differ in: a first space, runs of white space, line ends, numbers,
# accents in two spellings, scripts, characters without an id of their own, and what looks like a special token.
SENTENCES = (
    "Hello world",
    " Hello world",
    "hello  world   and    more",
    "A line.\nAnother line.\n\nA paragraph.",
    "\tdef f(x):\n\t\treturn x**2  # squared",
    "    for i in range(10):\n        print(i)",
    "3.14159, 1,000,000 and 2026-01-31; 7 % 3 = 1",
    "It's what they'd've said, isn't it?",
    "“Curly quotes” – and dashes — and an ellipsis…",
    "Café, naïve, Zürich, Ångström",
    "Cafe\u0301 with a combining accent",
    "ﬁne ligatures, ½ and x² in NFKC",
    "Привет, мир! Γειά σου Κόσμε",
    "你好,世界。こんにちは世界",
    "مرحبا بالعالم שלום עולם",
    "Emoji: 🙂 👩\u200d🔬 🇫🇷",
    "https://example.org/a_b?c=d&e=%20f#g",
    "<s> </s> <unk> <|endoftext|> [INST] <pad>",
    "ANTIDISESTABLISHMENTARIANISM pneumonoultramicroscopicsilicovolcanoconiosis",
    "non\u00a0breaking, zero\u200bwidth, trailing space ",
)


class Encoder(Protocol):
    """Whatever makes ids of a text, without special ones at its ends."""

    def encode(self, text: str) -> Sequence[int]: ...


def golden_ids(tokenizer: Encoder) -> list[list[int]]:
    """The ids of `SENTENCES`."""
    return [[int(one) for one in tokenizer.encode(text)] for text in SENTENCES]


def check_tokenizer(manifest: Manifest, tokenizer: Encoder) -> None:
    """Holds a tokenizer to the one that made the token shards.

    Args:
        manifest: of the shards.
        tokenizer: that reads or writes text for a model of theirs.

    Raises:
        ConfigError: with the first text of which it makes other ids, or where the manifest has no golden ids.
    """
    check_golden_ids(manifest.tokenizer, tokenizer)


def check_golden_ids(facts: TokenizerFacts, tokenizer: Encoder) -> None:
    """As `check_tokenizer`, of what a manifest, or the folder of a model, says of its tokenizer."""
    if len(facts.golden_ids) != len(SENTENCES):
        raise ConfigError(
            f"tokenizer: got {len(facts.golden_ids)} golden texts with the shards of {facts.name}, expected "
            f"{len(SENTENCES)}"
        )
    for text, expected, found in zip(SENTENCES, facts.golden_ids, golden_ids(tokenizer), strict=True):
        if found != expected:
            raise ConfigError(
                f"tokenizer: of {text!r} got the ids {found}, expected {expected}: those of {facts.name}, which made "
                "the token shards"
            )
