"""Turns a text into terms by one set of rules for indexing and searching, chosen by the corpus's language."""

import itertools
import threading
from collections.abc import Iterable
from typing import Literal

import regex
import Stemmer

from services.retriever.indexes.unicode_words import fold_text, split_words

Language = Literal["english", "cjk"]
ANALYZER_VERSION = 2
"""Increases whenever a text gives other terms than before; indexes of another version are refused."""
MAX_TERM_CHARACTERS = 255
"""The longest token of Lucene's StandardTokenizer, which splits longer ones, too."""
# A word and its term take about 150 bytes in the dictionary, so all of them 75 MB; then it starts again from empty.
_REMEMBERED_WORDS = 500_000

# fmt: off
# ENGLISH_STOP_WORDS_SET of Lucene's EnglishAnalyzer.
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))
# fmt: on
# Lucene also removes the one with a full-width apostrophe (U+FF07); ``fold_text`` has already made that a plain one.
_POSSESSIVES = ("'s", "'S", "’s", "’S")
# U+30FC, which lengthens a vowel in both kana, is named because its script is Common.
_CJK = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}ー]"
_CJK_CHARACTER = regex.compile(rf"{_CJK}\p{{M}}*")
_CJK_RUN = regex.compile(rf"(?:{_CJK}\p{{M}}*)+")
# Thai, Lao, Khmer, Burmese and related scripts: words follow each other without a space.
_UNSPACED_WORD = regex.compile(r"\p{Line_Break=Complex_Context}")
_CLUSTER = regex.compile(r"\X")
# A passage counts as Chinese, Japanese or Korean if a fifth of its letters are, and a corpus if one passage in a
# hundred does: the CJK analyzer treats all other text like the English one, so choosing it costs the rest nothing.
_CJK_LETTER_SHARE = 0.2
_CJK_PASSAGE_SHARE = 0.01
_REVISED_ENDINGS = (
    ("bly", "ble"),
    ("bli", "ble"),
    ("blies", "ble"),
    ("logy", "log"),
    ("logi", "log"),
    ("logies", "log"),
)


class EnglishAnalyzer:
    """The terms of Lucene's English analyzer with the Porter stemmer, which Anserini and Pyserini index.

    Words by UAX #29, possessive removed, lower case, 33 stop words dropped, Porter stems; words of one or two
    characters are not stemmed. The text is folded to one Unicode form first. Scripts that write no spaces give pairs
    of neighboring letters (Lucene keeps such a run as one word). Emoji give no terms (Lucene keeps them).
    """

    language: Language = "english"

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer("porter")
        self._terms_of_word: dict[str, str] = {}
        # Guards the stemmer, which must not be called concurrently, and additions to the dictionary. Known words are
        # read without it: a single lookup in a dictionary is atomic.
        self._lock = threading.Lock()

    def terms(self, text: str) -> list[str]:
        """Terms of ``text`` in order, repeated ones included."""
        return self.terms_of_folded(fold_text(text))

    def terms_of_folded(self, text: str) -> list[str]:
        """Terms of a text that ``fold_text`` has already folded."""
        known = self._terms_of_word
        terms: list[str] = []
        for word in split_words(text):
            # None: a new word; empty: a known stop word.
            term = known.get(word)
            if term is None:
                # Not added to the dictionary: such a run may be an entire sentence, which hardly occurs twice.
                if _UNSPACED_WORD.match(word):
                    terms.extend(_unspaced_terms(word))
                    continue
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
        word = _lower(word)
        if word in STOP_WORDS:
            return ""
        if len(word) <= 2:
            return word
        return self._stemmer.stemWord(_apply_revised_endings(word))


class CjkAnalyzer:
    """Chinese, Japanese and Korean as Lucene's CJKBigramFilter splits them; other words as in English.

    A run of adjacent characters, of any of these scripts, gives its overlapping pairs; a single character gives itself.
    """

    language: Language = "cjk"

    def __init__(self) -> None:
        self._english = EnglishAnalyzer()

    def terms(self, text: str) -> list[str]:
        """Terms of ``text`` in order, repeated ones included."""
        text = fold_text(text)
        terms: list[str] = []
        end = 0
        for run in _CJK_RUN.finditer(text):
            terms.extend(self._english.terms_of_folded(text[end : run.start()]))
            terms.extend(_pairs(_CJK_CHARACTER.findall(run.group())))
            end = run.end()
        terms.extend(self._english.terms_of_folded(text[end:]))
        return terms


Analyzer = EnglishAnalyzer | CjkAnalyzer


def analyzer_for(language: Language) -> Analyzer:
    """The analyzer of a language."""
    return CjkAnalyzer() if language == "cjk" else EnglishAnalyzer()


def detect_language(texts: Iterable[str]) -> Language:
    """The language of a corpus, judged by a sample of passages from all parts of it."""
    passages = cjk_passages = 0
    for text in map(fold_text, texts):
        letters = sum(character.isalpha() for character in text)
        cjk_letters = sum(len(run) for run in _CJK_RUN.findall(text))
        passages += letters > 0
        cjk_passages += cjk_letters > _CJK_LETTER_SHARE * max(letters, 1)
    return "cjk" if cjk_passages >= _CJK_PASSAGE_SHARE * max(passages, 1) else "english"


def _lower(word: str) -> str:
    """Lower case, one character for each: Python turns the Turkish capital İ into "i" and a combining dot."""
    return word.lower().replace("i\u0307", "i")


def _pairs(characters: list[str]) -> list[str]:
    """Overlapping pairs; a single character is its own term."""
    if len(characters) == 1:
        return characters
    return [first + second for first, second in itertools.pairwise(characters)]


def _unspaced_terms(run: str) -> list[str]:
    """Pairs of letters with their marks, and letters that carry marks: those are often words by themselves."""
    clusters = _CLUSTER.findall(run)
    if len(clusters) == 1:
        return clusters
    return _pairs(clusters) + [cluster for cluster in clusters if len(cluster) > 1]


def _apply_revised_endings(word: str) -> str:
    """Porter's later revisions, which Lucene implements and Snowball's ``porter`` lacks: BLI -> BLE and LOGI -> LOG.

    Both apply if a vowel-consonant pair precedes the ending; steps 1a and 1c turn -y and -ies into an i.
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
