"""Terms, against what Lucene's English analyzer is known to give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.indexes import word_boundaries
from services.retriever.indexes.analyzer import CjkAnalyzer, EnglishAnalyzer, detect_language

english = EnglishAnalyzer()

# Words and stems as Lucene's EnglishAnalyzer gives them: its own unit test (possessives with three apostrophes, stop
# words), the examples of Porter's paper, and the two later revisions (bli, logi) that Lucene's PorterStemmer contains.
PARITY = [
    ("books", "book"), ("steven's", "steven"), ("steven’s", "steven"), ("steven＇s", "steven"), ("STEVEN'S", "steven"),
    ("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("feed", "feed"), ("agreed", "agre"),
    ("plastered", "plaster"), ("motoring", "motor"), ("sing", "sing"), ("conflated", "conflat"), ("hopping", "hop"),
    ("falling", "fall"), ("filing", "file"), ("happy", "happi"), ("sky", "sky"), ("relational", "relat"),
    ("conditional", "condit"), ("digitizer", "digit"), ("radically", "radic"), ("vietnamization", "vietnam"),
    ("formality", "formal"), ("triplicate", "triplic"), ("hopefulness", "hope"), ("revival", "reviv"),
    ("adjustable", "adjust"), ("probate", "probat"), ("controlling", "control"),
    ("possibly", "possibl"), ("archaeology", "archaeolog"), ("archaeologies", "archaeolog"), ("biology", "biologi"),
    ("ably", "abli"), ("us", "us"), ("U.S.A.", "u.s.a"), ("naïve", "naïv"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "stem"), PARITY)
def test_stems_are_lucenes(word: str, stem: str) -> None:
    assert english.terms(word) == [stem]


def test_the_33_stop_words_are_dropped_and_no_others() -> None:
    text = (
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with"
    )
    assert len(text.split()) == 33
    assert english.terms(text) == []
    assert english.terms("from has he were which") == ["from", "ha", "he", "were", "which"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.14 and 1,000.", ["3.14", "and", "1,000"]),
        ("can't e.g. wi-fi a:b", ["can't", "e.g", "wi", "fi", "a:b"]),
        ("foo_bar __ _", ["foo_bar"]),
        ("x.1 1.x", ["x", "1", "1", "x"]),  # a full stop joins two letters or two digits, not one of each
        ("'Abd 'quoted'", ["Abd", "quoted"]),
        ("東京タワー", ["東", "京", "タワー"]),
        ("ひらがな", ["ひ", "ら", "が", "な"]),
        ("한국어 문서", ["한국어", "문서"]),
        ("naïve café", ["naïve", "café"]),
        ("can’t", ["can’t"]),
        ("", []),
        ("?! …", []),
    ],
)
def test_words_end_where_unicode_says(text: str, expected: list[str]) -> None:
    assert word_boundaries.words(text) == expected


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_fast_path_for_ascii_agrees_with_the_general_one(text: str) -> None:
    found = [word for word in word_boundaries._UNICODE_WORD.findall(text) if word.strip("_")]
    assert word_boundaries.words(text) == found


def test_an_endless_word_is_cut_into_pieces_of_255() -> None:
    terms = english.terms("9" * 600)
    assert [len(term) for term in terms] == [255, 255, 90]


def test_chinese_gives_characters_and_pairs_and_other_words_as_in_english() -> None:
    terms = CjkAnalyzer().terms("北京大学 is a university")
    assert terms == ["北", "京", "大", "学", "北京", "京大", "大学", "univers"]


def test_the_language_is_told_by_the_share_of_cjk_letters() -> None:
    assert detect_language(["A text with one 字"]) == "english"
    assert detect_language(["这是一个中文句子 with English"]) == "cjk"
    assert detect_language(["123 ..."]) == "english"
