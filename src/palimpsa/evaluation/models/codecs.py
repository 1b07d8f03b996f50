"""Text to tokens, as a model was trained to read it: with our own tokenizers, or those of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from palimpsa.text.tokenizers import Tokenizer


class Codec(ABC):
    """A tokenizer as evaluation sees it.

    Attributes:
        prefix_token: what a text without a context begins with: the end of the text before it.
        end_of_text: the token that ends a document.
        vocab_size: every id is below it.
    """

    prefix_token: int
    end_of_text: int
    vocab_size: int

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """The ids of a text.

        Args:
            add_special_tokens: at its ends; None: as the tokenizer does by itself.
        """


class OwnCodec(Codec):
    """A tokenizer of `palimpsa.text`, which adds nothing: documents began with their first token in training too.

    Args:
        prefix_token: None: the end of text.
    """

    def __init__(self, tokenizer: Tokenizer, prefix_token: int | None = None) -> None:
        self._tokenizer = tokenizer
        self.end_of_text = tokenizer.facts.end_of_text
        self.vocab_size = tokenizer.facts.vocab_size
        self.prefix_token = self.end_of_text if prefix_token is None else prefix_token

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        return self._tokenizer.encode(text)


class TransformersCodec(Codec):
    """A tokenizer of the transformers library, used as the harness's HFLM uses it.

    Args:
        prefix_token: None: the token that begins a text, else the one that ends it.
    """

    def __init__(self, tokenizer: Any, prefix_token: int | None = None) -> None:
        self._tokenizer = tokenizer
        self.end_of_text = tokenizer.eos_token_id
        self.vocab_size = len(tokenizer)
        begin = tokenizer.bos_token_id
        trained = self.end_of_text if begin is None else begin
        self.prefix_token = trained if prefix_token is None else prefix_token
        self._prefix_text = tokenizer.decode([self.prefix_token])

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        if add_special_tokens is None and not text.startswith(self._prefix_text):
            return self._tokenizer.encode(text)
        return self._tokenizer.encode(text, add_special_tokens=bool(add_special_tokens))


class WithoutSpecialTokens:
    """What golden ids are asked of: ids without special ones at their ends."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def encode(self, text: str) -> Sequence[int]:
        return self._codec.encode(text, add_special_tokens=False)
