"""Normalizes answers by SQuAD's rules and splits them into words and tokens for comparison."""

import re
import string
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Hiragana and katakana, Han with its extensions, and Han's compatibility characters. Hangul is not among them: Korean
# separates words by spaces.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


def normalize_answer(text: str) -> str:
    """Lowercase, remove ASCII punctuation and a/an/the, and collapse blanks (Rajpurkar et al., EMNLP 2016).

    The text is composed (NFC) first, so that composed and decomposed spellings of a letter are equal. Training rewards
    and evaluation use this same function, so the two cannot differ.
    """
    # The order is that of SQuAD's script, articles last: "a-b" becomes the word "ab" and keeps its letters.
    return " ".join(_ARTICLES.sub(" ", _remove_punctuation(text)).split())


def comparable_forms(text: str) -> tuple[str, str, str]:
    """Return the forms in which two answers are compared: normalized, with articles, and also with punctuation.

    A golden answer is compared in the first form that is not empty: the option "A" consists of an article, "+" of
    punctuation. In the normalized form alone both would equal every empty answer.
    """
    composed = " ".join(unicodedata.normalize("NFC", text).lower().split())
    return normalize_answer(text), " ".join(_remove_punctuation(text).split()), composed


def split_units(normalized: str) -> list[str]:
    """Split a form of ``comparable_forms`` into words; a character of a script without spaces (CJK) is a word too."""
    return _CJK.sub(r" \g<0> ", normalized).split()


def span_tokens(text: str) -> list[str]:
    """Return the tokens on which spans are compared: runs of letters, digits and marks, or one other character.

    Text is normalized and decomposed (NFD) first. This is the tokenization of DPR's answer check (Karpukhin et al.,
    EMNLP 2020), except that every CJK character stands alone.
    """
    tokens: list[str] = []
    run: list[str] = []
    # In decomposed text a letter's accents are marks of their own (category M) and belong to its run.
    for character in unicodedata.normalize("NFD", normalize_answer(text)):
        kind = unicodedata.category(character)[0]
        if kind in "LNM" and not _CJK.match(character):
            run.append(character)
            continue
        if run:
            tokens.append("".join(run))
            run.clear()
        if kind not in "ZC":
            tokens.append(character)
    return [*tokens, "".join(run)] if run else tokens


def is_cjk(token: str) -> bool:
    """Return whether the token is a character of a script that is written without spaces."""
    return _CJK.match(token) is not None


def _remove_punctuation(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower().translate(_WITHOUT_PUNCTUATION)
