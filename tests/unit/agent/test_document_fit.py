"""An observation is fitted to its token budget: documents are cut or left out, and the tags stay complete."""

from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.document_fit import CUT_MARK, LEAST_CHARACTERS, cut_to_fit, fit_results, shorten
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.protocols.s3_legacy import S3LegacyProtocol
from searchrl.agent.protocols.search_r1 import SearchR1Protocol
from searchrl.domain.passage import Passage
from tests.fakes.in_memory_searcher import results_of
from tests.fakes.scripted_policy import CharacterTokenizer

FOUND = results_of(*(Passage(f"p{number}", "T", "x" * 50) for number in range(4)))
LONG = results_of(
    Passage("long", "L", "start " + "word " * 12_000),
    Passage("short", "S", "Brief."),
    Passage("long2", "L", "y" * 9000),
)
EMPTY = "\n\n<information></information>\n\n"


def test_all_documents_are_shown_if_they_fit() -> None:
    fitted = fit_results([FOUND], S3Protocol(), CharacterTokenizer(), 10_000)
    assert fitted.results == fitted.displayed == (tuple(FOUND),)
    assert fitted.ids == CharacterTokenizer().encode(fitted.text)
    assert fitted.cut == ((),)


def test_exactly_the_limit_fits_and_one_token_less_does_not() -> None:
    text = fit_results([FOUND], S3Protocol(), CharacterTokenizer(), 10_000).text
    assert len(fit_results([FOUND], S3Protocol(), CharacterTokenizer(), len(text)).results[0]) == 4
    # texts of 50 characters are below the length to which documents are cut, so one of them goes
    assert len(fit_results([FOUND], S3Protocol(), CharacterTokenizer(), len(text) - 1).results[0]) == 3


def test_long_documents_are_cut_and_the_short_one_between_them_stays_complete() -> None:
    for protocol in (S3Protocol(), SearchR1Protocol()):
        fitted = fit_results([LONG], protocol, CharacterTokenizer(), 1400)
        assert [result.passage.id for result in fitted.results[0]] == ["long", "short", "long2"]
        assert fitted.cut == ((1, 3),)
        assert "Brief.\n" in fitted.text
        assert fitted.text.count(CUT_MARK + "\n") == 2
        assert 1300 < len(fitted.ids) <= 1400  # most of the budget of 1400 is used
        assert fitted.results[0] == tuple(LONG)  # the generator gets the documents as they were found


def test_with_room_for_one_document_the_short_one_is_shown() -> None:
    fitted = fit_results([LONG], S3Protocol(), CharacterTokenizer(), 120)
    assert [result.passage.id for result in fitted.results[0]] == ["short"]


def test_a_huge_document_is_never_tokenized_again_and_again() -> None:
    tokenizer = CharacterTokenizer()
    fit_results([results_of(Passage("a", "T", "z" * 500_000))], S3Protocol(), tokenizer, 1000)
    assert sum(len(text) > 4000 for text in tokenizer.encoded) == 1


def test_if_no_document_fits_the_block_is_empty_but_complete() -> None:
    fitted = fit_results([FOUND], S3Protocol(), CharacterTokenizer(), 5)
    assert fitted.results == ((),)
    assert fitted.text == EMPTY


def test_several_queries_lose_documents_of_the_longest_list_first() -> None:
    fitted = fit_results([FOUND, FOUND[:1]], S3Protocol(), CharacterTokenizer(), 250)
    assert [len(found) for found in fitted.results] == [1, 1]


def test_a_search_without_results_shows_an_empty_block() -> None:
    assert fit_results([[]], S3Protocol(), CharacterTokenizer(), 100).text == EMPTY


def test_legacy_cuts_tokens_and_keeps_every_document() -> None:
    fitted = fit_results([FOUND], S3LegacyProtocol(), CharacterTokenizer(), 100)
    assert len(fitted.ids) == len(fitted.text) == 100
    assert len(fitted.results[0]) == 4


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.text(max_size=400), max_size=4), min_size=1, max_size=3), st.integers(40, 1500))
def test_the_budget_holds_unless_nothing_is_left_to_cut(lists: list[list[str]], budget: int) -> None:
    found = [results_of(*(Passage(f"{i}", "T", text) for i, text in enumerate(texts))) for texts in lists]
    fitted = fit_results(found, S3Protocol(), CharacterTokenizer(), budget)
    assert len(fitted.ids) <= budget or not any(fitted.results)
    assert fitted.ids == CharacterTokenizer().encode(fitted.text)
    for given_list, kept, seen in zip(found, fitted.results, fitted.displayed, strict=True):
        assert list(kept) == [result for result in given_list if result in kept]
        assert len(seen) == len(kept)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=3000), max_size=6), st.integers(0, 4000))
def test_cut_texts_fit_and_lose_only_what_they_must(texts: list[str], budget: int) -> None:
    cut = cut_to_fit(texts, lambda kept: sum(map(len, kept)) <= budget)
    if cut is None:
        assert sum(len(shorten(text, LEAST_CHARACTERS)) for text in texts) > budget
        return
    assert sum(map(len, cut.texts)) <= budget
    for index, (text, kept) in enumerate(zip(texts, cut.texts, strict=True)):
        assert (kept == text) == (index not in cut.cut)
        assert text.startswith(kept.removesuffix(CUT_MARK).rstrip())


def test_a_cut_falls_between_words_where_there_are_any() -> None:
    assert shorten("one two three four", 15) == "one two three" + CUT_MARK
    assert shorten("日本語" * 40, 10) == ("日本語" * 4)[:10] + CUT_MARK
