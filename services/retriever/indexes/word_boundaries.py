"""Splits a text into words at Unicode's default word boundaries (UAX #29)."""

import re

import regex

_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+(?:(?:(?<=[A-Za-z])[.:'](?=[A-Za-z])|(?<=[0-9])[.,;'](?=[0-9]))[A-Za-z0-9_]+)*")

_IGNORED = r"\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}"
_LETTER = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}"
_DIGIT = r"\p{WB=Numeric}"
_RUN = rf"[{_LETTER}{_DIGIT}\p{{WB=ExtendNumLet}}][{_LETTER}{_DIGIT}\p{{WB=ExtendNumLet}}{_IGNORED}]*"
_BETWEEN_LETTERS = rf"(?<=[{_LETTER}{_IGNORED}])[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}'](?=[{_LETTER}])"
_BETWEEN_DIGITS = rf"(?<=[{_DIGIT}{_IGNORED}])[\p{{WB=MidNum}}\p{{WB=MidNumLet}}'](?=[{_DIGIT}])"
_UNICODE_WORD = regex.compile(
    rf"{_RUN}(?:(?:{_BETWEEN_LETTERS}|{_BETWEEN_DIGITS}){_RUN})*"
    rf"|\p{{WB=Katakana}}[\p{{WB=Katakana}}{_IGNORED}]*"
    rf"|[\p{{Script=Han}}\p{{Script=Hiragana}}][{_IGNORED}]*"
    rf"|[\p{{Line_Break=Complex_Context}}][\p{{Line_Break=Complex_Context}}{_IGNORED}]*"
)


def split_words(text: str) -> list[str]:
    """Words of ``text`` in order; punctuation, spaces and lone underscores are left out.

    Han and Hiragana characters are words by themselves, as in Lucene's StandardTokenizer.
    """
    found = _ASCII_WORD.findall(text) if text.isascii() else _UNICODE_WORD.findall(text)
    if "_" in text:
        return [word for word in found if word.strip("_")]
    return found
