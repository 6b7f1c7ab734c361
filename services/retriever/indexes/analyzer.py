"""Which terms does a text give? One set of rules for indexing and searching, chosen by the corpus's language."""

import itertools
import threading
from collections.abc import Iterable
from typing import Literal

import regex
import Stemmer

from services.retriever.indexes.word_boundaries import words

Language = Literal["english", "cjk"]
ANALYZER_VERSION = 1
MAX_TERM_CHARACTERS = 255
_REMEMBERED_WORDS = 500_000

# fmt: off
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))
# fmt: on
_POSSESSIVES = ("'s", "'S", "’s", "’S", "＇s", "＇S")
_CJK_RUN = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}ー々]+")
_CJK_SHARE = 0.2
_REVISED_ENDINGS = (
    ("bly", "ble"),
    ("bli", "ble"),
    ("blies", "ble"),
    ("logy", "log"),
    ("logi", "log"),
    ("logies", "log"),
)


class EnglishAnalyzer:
    """The chain of Lucene's English analyzer with the Porter stemmer, as Anserini and Pyserini use it.

    Words by UAX #29, possessive removed, lower case, 33 stop words dropped, Porter stems; words of one or two
    characters are not stemmed. Emoji give no terms (Lucene keeps them).
    """

    language: Language = "english"

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer("porter")
        self._terms_of_word: dict[str, str] = {}
        self._lock = threading.Lock()

    def terms(self, text: str) -> list[str]:
        """Terms of ``text`` in order, repeated ones included."""
        known = self._terms_of_word
        terms = []
        for word in words(text):
            term = known.get(word)
            if term is None:
                term = self._learn(word)
            if term:
                terms.append(term)
        if any(len(term) > MAX_TERM_CHARACTERS for term in terms):
            return list(itertools.chain.from_iterable(map(_split_long, terms)))
        return terms

    def _learn(self, word: str) -> str:
        with self._lock:
            if len(self._terms_of_word) >= _REMEMBERED_WORDS:
                self._terms_of_word.clear()
            term = self._term(word)
            self._terms_of_word[word] = term
            return term

    def _term(self, word: str) -> str:
        """The term of one word; empty for a stop word."""
        if word.endswith(_POSSESSIVES):
            word = word[:-2]
        word = word.lower()
        if word in STOP_WORDS:
            return ""
        if len(word) <= 2:
            return word
        return self._stemmer.stemWord(_apply_revised_endings(word))


class CjkAnalyzer:
    """Chinese, Japanese and Korean: single characters and character pairs of each run; other words as in English."""

    language: Language = "cjk"

    def __init__(self) -> None:
        self._english = EnglishAnalyzer()

    def terms(self, text: str) -> list[str]:
        """Terms of ``text``: characters, then pairs of each CJK run, then the terms of what lies between."""
        terms: list[str] = []
        end = 0
        for run in _CJK_RUN.finditer(text):
            terms.extend(self._english.terms(text[end : run.start()]))
            characters = run.group()
            terms.extend(characters)
            terms.extend(first + second for first, second in itertools.pairwise(characters))
            end = run.end()
        terms.extend(self._english.terms(text[end:]))
        return terms


Analyzer = EnglishAnalyzer | CjkAnalyzer


def analyzer_for(language: Language) -> Analyzer:
    """The analyzer of a language."""
    return CjkAnalyzer() if language == "cjk" else EnglishAnalyzer()


def detect_language(texts: Iterable[str]) -> Language:
    """``cjk`` where more than a fifth of the letters of ``texts`` are Chinese, Japanese or Korean."""
    letters = cjk_letters = 0
    for text in texts:
        letters += sum(character.isalpha() for character in text)
        cjk_letters += sum(len(run) for run in _CJK_RUN.findall(text))
    return "cjk" if cjk_letters > _CJK_SHARE * max(letters, 1) else "english"


def _apply_revised_endings(word: str) -> str:
    """Porter's later revisions, which Lucene has and Snowball's ``porter`` has not: BLI -> BLE and LOGI -> LOG.

    Both apply where a vowel-consonant pair lies before the ending; steps 1a and 1c make -y and -ies end in i.
    """
    for ending, replacement in _REVISED_ENDINGS:
        if word.endswith(ending):
            before = word[: -len(ending)]
            return before + replacement if _has_vowel_then_consonant(before) else word
    return word


def _has_vowel_then_consonant(stem: str) -> bool:
    """Porter's m > 0. A y is a vowel after a consonant, and a consonant elsewhere."""
    seen_vowel = is_vowel = False
    for position, character in enumerate(stem):
        is_vowel = character in "aeiou" or (character == "y" and position > 0 and not is_vowel)
        if seen_vowel and not is_vowel:
            return True
        seen_vowel = seen_vowel or is_vowel
    return False


def _split_long(term: str) -> Iterable[str]:
    return (term[at : at + MAX_TERM_CHARACTERS] for at in range(0, len(term), MAX_TERM_CHARACTERS))
