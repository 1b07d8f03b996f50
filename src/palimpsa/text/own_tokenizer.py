"""The tokenizer that made token shards, found again on this machine and held to the golden ids of their manifest."""

from __future__ import annotations

from palimpsa.text.golden import check_tokenizer
from palimpsa.text.manifest import Manifest
from palimpsa.text.tokenizers import Tokenizer, TokenizerMissingError, build_tokenizer, find_tokenizer


def load_own_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer that a manifest names, from this machine alone: a hub's from its local cache.

    Raises:
        TokenizerMissingError: it is not here.
        ConfigError: it is damaged, or makes other ids than the shards have: see `golden.check_tokenizer`.
    """
    facts = manifest.tokenizer
    files = find_tokenizer(facts.name, end_of_text=facts.end_of_text, reaches_hub=False)
    tokenizer = build_tokenizer(files)
    check_tokenizer(manifest, tokenizer)
    return tokenizer


def check_own_tokenizer(manifest: Manifest) -> str | None:
    """Holds the tokenizer that a manifest names to its golden ids, where it is on this machine.

    Returns:
        None, or why it could not be asked: training reads stored ids and does without it.

    Raises:
        ConfigError: see `load_own_tokenizer`.
    """
    try:
        load_own_tokenizer(manifest)
    except TokenizerMissingError as error:
        # Of ids that no text was made into there is nothing to ask.
        return str(error) if manifest.tokenizer.golden_ids else None
    return None
