"""Provides the token counters: by the model's tokenizer, or estimated from words."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from searchrl.errors import ConfigurationError

_WORD = re.compile(r"\w+|[^\w\s]")
TOKENS_PER_WORD = 1.3


class TokenCounter(Protocol):
    """Counts the generator's tokens, or estimates them.

    Attributes:
        control_tokens: spellings of the model's control tokens; empty if they are unknown.
    """

    control_tokens: Collection[str]

    def count(self, text: str) -> int: ...


class WordCounter:
    """An estimate for models whose tokenizer is not available: words and punctuation marks times a factor.

    1.3 tokens per word or mark is about what byte-level vocabularies of 100,000 and more need for English.
    """

    control_tokens: Collection[str] = ()

    def __init__(self, tokens_per_word: float = TOKENS_PER_WORD) -> None:
        self._factor = tokens_per_word

    def count(self, text: str) -> int:
        return round(len(_WORD.findall(text)) * self._factor)


class ModelTokenCounter:
    """Exact counts with the model's own ``tokenizer.json``."""

    def __init__(self, model_dir: Path) -> None:
        from tokenizers import Tokenizer

        from searchrl.tokenization.control_tokens import control_tokens

        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError(f"context.tokenizer_dir: there is no {path}; name a folder with one")
        self._tokenizer = Tokenizer.from_file(str(path))
        self.control_tokens: Collection[str] = frozenset(control_tokens(self._tokenizer).values())

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
