"""The analyzers give the terms of Lucene's analyzers, and the same terms for every Unicode form of a text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.retriever.indexes import unicode_words
from services.retriever.indexes.analyzer import CjkAnalyzer, EnglishAnalyzer, detect_language
from services.retriever.indexes.unicode_words import fold_text

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
    assert unicode_words.split_words(text) == expected


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_fast_path_for_ascii_agrees_with_the_general_one(text: str) -> None:
    found = [word for word in unicode_words._UNICODE_WORD.findall(text) if word.strip("_")]
    assert unicode_words.split_words(text) == found


def test_an_endless_word_is_cut_into_pieces_of_255() -> None:
    terms = english.terms("9" * 600)
    assert [len(term) for term in terms] == [255, 255, 90]


# What StandardTokenizer, CJKWidthFilter and CJKBigramFilter give: pairs of neighboring characters across scripts, a
# single character only where it has no neighbor.
@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("北京大学 is a university", ["北京", "京大", "大学", "univers"]),
        ("东", ["东"]),
        ("東 京", ["東", "京"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("2020年", ["2020", "年"]),
        ("서울은", ["서울", "울은"]),
        ("한 국", ["한", "국"]),
        ("ﾃｽﾄ", ["テス", "スト"]),
        ("ｶﾞｷﾞ", ["ガギ"]),
        ("２０２０ ＡＢＣ", ["2020", "abc"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("葛\U000e0100城", ["葛城"]),  # a variation selector shows another glyph of the same character
    ],
)
def test_chinese_japanese_and_korean_give_pairs(text: str, terms: list[str]) -> None:
    assert CjkAnalyzer().terms(text) == terms


# "word", as the script writes it, inside a longer run without a space.
@pytest.mark.parametrize(
    ("run", "word"),
    [
        ("ประเทศไทยมีประชากรมาก", "ประชากร"),
        ("ນະຄອນຫຼວງວຽງຈັນ", "ວຽງຈັນ"),
        ("រាជធានីភ្នំពេញ", "ភ្នំពេញ"),
        ("ရန်ကုန်မြို့", "မြို့"),
        ("ရေကန်", "ရေ"),
    ],
)
@pytest.mark.parametrize("analyzer", [english, CjkAnalyzer()])
def test_a_word_is_found_inside_a_run_of_a_script_without_spaces(
    analyzer: EnglishAnalyzer | CjkAnalyzer, run: str, word: str
) -> None:
    assert set(analyzer.terms(word)) <= set(analyzer.terms(run))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Nguyễn Hiếu", unicodedata.normalize("NFD", "Nguyễn Hiếu")),
        ("서울특별시", unicodedata.normalize("NFD", "서울특별시")),
        ("İstanbul", "istanbul"),
        ("İstanbul", "İstanbul".lower()),
        ("น้ำ", "นํ้า"),
        ("financial", "ﬁnan\u00adcial"),
        ("سلام", "ﺳﻼﻡ"),
        ("Å", "\u212b"),
    ],
)
@pytest.mark.parametrize("analyzer", [english, CjkAnalyzer()])
def test_spellings_that_look_alike_give_the_same_terms(
    analyzer: EnglishAnalyzer | CjkAnalyzer, one: str, other: str
) -> None:
    assert analyzer.terms(one) == analyzer.terms(other) != []


def full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text)


# Text of every script, with the characters that have several spellings drawn often.
_texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.characters(max_codepoint=0x24F),
        st.sampled_from("éễİåกำน้ํາຳ서울かがパーｶﾞﾊﾟテＡ１東京ﬁﷲ'’._\u0301\u0323\u0307\u3099\u00ad\ufe0f \u200d"),
    ),
    max_size=24,
)


@settings(max_examples=400, deadline=None)
@given(_texts)
def test_every_unicode_form_of_a_text_gives_the_same_terms(text: str) -> None:
    for analyzer in (english, CjkAnalyzer()):
        terms = analyzer.terms(text)
        for spelling in (*(unicodedata.normalize(form, text) for form in ("NFC", "NFD")), fold_text(text)):
            assert analyzer.terms(spelling) == terms
        assert analyzer.terms(full_width(text)) == terms


def test_a_corpus_is_cjk_if_some_of_its_passages_are() -> None:
    assert detect_language(["A text with one 字"] * 100) == "english"
    assert detect_language(["这是一个中文句子 with English"]) == "cjk"
    assert detect_language(["English only"] * 97 + [unicodedata.normalize("NFD", "서울은 수도이다")] * 3) == "cjk"
    assert detect_language(["English only"] * 999 + ["这是一个中文句子"]) == "english"
    assert detect_language(["123 ..."]) == "english"
    assert detect_language([]) == "english"
