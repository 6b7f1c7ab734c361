"""Which differences between two answers do not count? SQuAD's rules, and how an answer splits into units."""

import re
import string
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without a/an/the, single blanks (Rajpurkar et al., EMNLP 2016).

    The same function serves training rewards and evaluation, so the two cannot differ.
    """
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def answer_units(text: str) -> list[str]:
    """Return the words of a normalised answer; a character of a script without spaces (CJK) is a word of its own."""
    return _CJK.sub(r" \g<0> ", normalize_answer(text)).split()


def span_tokens(text: str) -> list[str]:
    """Return the tokens on which spans are compared: runs of letters, digits and marks, or one other character.

    Text is decomposed (NFD) and normalised first. This is the tokenization of DPR's answer check (Karpukhin et al.,
    EMNLP 2020), except that every CJK character stands alone.
    """
    tokens: list[str] = []
    run: list[str] = []
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
