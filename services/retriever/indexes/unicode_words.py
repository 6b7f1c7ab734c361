"""Folds the spellings of a text into one form, and splits it into words at Unicode's default boundaries (UAX #29).

Unicode has several code sequences for what a reader sees as the same text: composed and decomposed letters, full-width
and half-width letters, ligatures of printed pages, invisible marks. Indexing and searching both fold first, so that a
query matches a passage that is encoded differently.
"""

import re
import unicodedata

import regex

# Blocks whose compatibility forms differ from the plain characters in width or shape only, not in meaning:
# Latin ligatures, Arabic letters in their printed shapes, and Lucene's CJKWidthFilter block (full-width ASCII,
# half-width katakana and hangul). Thai and Lao AM are one character or two, depending on the keyboard.
_FOLDED_BLOCKS = (
    range(0xFB00, 0xFB07),
    range(0xFB50, 0xFDFE),
    range(0xFE70, 0xFEFD),
    range(0xFF01, 0xFFEF),
    (0x0E33, 0x0EB3),
)
# No glyph of their own: soft hyphen, direction marks, word joiner, byte order mark, variation selectors.
# The joiners U+200C and U+200D stay, because they separate words in Persian and in Indic scripts.
_INVISIBLE = (
    0x00AD,
    0x061C,
    *range(0x200E, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2065),
    *range(0x2066, 0x206A),
    *range(0xFE00, 0xFE10),
    0xFEFF,
    *range(0xE0100, 0xE01F0),
)


def _folding_table() -> dict[int, str]:
    table = {code: "" for code in _INVISIBLE}
    for block in _FOLDED_BLOCKS:
        for code in block:
            plain = unicodedata.normalize("NFKC", chr(code))
            # Some Arabic forms stand for whole phrases or for a mark on a space; splitting them would make new words.
            if plain != chr(code) and " " not in plain:
                table[code] = plain
    return table


_TABLE = _folding_table()
_FOLDED = regex.compile("[" + "".join(map(regex.escape, map(chr, sorted(_TABLE)))) + "]")
# Canonical order leaves a nikhahit and a tone mark as they were typed; both orders show the same syllable.
_NIKHAHIT_BEFORE_TONE = regex.compile("([\u0e4d\u0ecd])([\u0e48-\u0e4b\u0ec8-\u0ecb])")

# What the rules below amount to in ASCII, where no property has to be looked up. UAX #29 keeps a word together over a
# full stop, colon or apostrophe between letters (WB6, WB7: ``u.s.a``), and over a full stop, comma, semicolon or
# apostrophe between digits (WB11, WB12: ``1,000.5``). A property test compares both patterns.
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+(?:(?:(?<=[A-Za-z])[.:'](?=[A-Za-z])|(?<=[0-9])[.,;'](?=[0-9]))[A-Za-z0-9_]+)*")

# WB4: marks, format characters and joiners belong to the character before them.
_IGNORED = r"\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}"
_LETTER = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}"
_DIGIT = r"\p{WB=Numeric}"
_RUN = rf"[{_LETTER}{_DIGIT}\p{{WB=ExtendNumLet}}][{_LETTER}{_DIGIT}\p{{WB=ExtendNumLet}}{_IGNORED}]*"
_BETWEEN_LETTERS = rf"(?<=[{_LETTER}{_IGNORED}])[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}'](?=[{_LETTER}])"
_BETWEEN_DIGITS = rf"(?<=[{_DIGIT}{_IGNORED}])[\p{{WB=MidNum}}\p{{WB=MidNumLet}}'](?=[{_DIGIT}])"
# In this order: letters, digits and underscores (WB5 to WB12, WB13a, WB13b); a run of Katakana (WB13); a single Han or
# Hiragana character (WB999); a run of a script without spaces, which UAX #29 leaves to dictionaries.
_UNICODE_WORD = regex.compile(
    rf"{_RUN}(?:(?:{_BETWEEN_LETTERS}|{_BETWEEN_DIGITS}){_RUN})*"
    rf"|\p{{WB=Katakana}}[\p{{WB=Katakana}}{_IGNORED}]*"
    rf"|[\p{{Script=Han}}\p{{Script=Hiragana}}][{_IGNORED}]*"
    rf"|[\p{{Line_Break=Complex_Context}}][\p{{Line_Break=Complex_Context}}{_IGNORED}]*"
)


def fold_text(text: str) -> str:
    """Return ``text`` composed (NFC), in plain width and shape, without invisible marks."""
    if text.isascii():
        return text
    if _FOLDED.search(text):
        text = text.translate(_TABLE)
    return unicodedata.normalize("NFC", _NIKHAHIT_BEFORE_TONE.sub(r"\2\1", text))


def split_words(text: str) -> list[str]:
    """Words of ``text`` in order; punctuation, spaces and lone underscores are left out.

    Han and Hiragana characters are words by themselves, as in Lucene's StandardTokenizer.
    """
    found = _ASCII_WORD.findall(text) if text.isascii() else _UNICODE_WORD.findall(text)
    if "_" in text:
        return [word for word in found if word.strip("_")]
    return found
