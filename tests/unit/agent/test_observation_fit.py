from searchrl.agent.observation_fit import fit_results
from searchrl.agent.protocols.s3_protocol import S3Protocol
from searchrl.domain.passage import Passage
from tests.fakes.in_memory_searcher import results_of
from tests.fakes.scripted_policy import CharacterTokenizer

FOUND = results_of(*(Passage(f"p{number}", "T", "x" * 50) for number in range(4)))
EMPTY = "\n\n<information></information>\n\n"


def test_everything_is_shown_where_it_fits() -> None:
    shown, text, ids = fit_results([FOUND], S3Protocol(), CharacterTokenizer(), 10_000)
    assert shown == (tuple(FOUND),)
    assert ids == CharacterTokenizer().encode(text)


def test_exactly_the_limit_fits_and_one_token_less_drops_a_document() -> None:
    _, text, _ = fit_results([FOUND], S3Protocol(), CharacterTokenizer(), 10_000)
    assert len(fit_results([FOUND], S3Protocol(), CharacterTokenizer(), len(text))[0][0]) == 4
    assert len(fit_results([FOUND], S3Protocol(), CharacterTokenizer(), len(text) - 1)[0][0]) == 3


def test_if_no_document_fits_the_block_is_empty_but_whole() -> None:
    shown, text, _ = fit_results([FOUND], S3Protocol(), CharacterTokenizer(), 5)
    assert shown == ((),)
    assert text == EMPTY


def test_several_queries_lose_documents_of_the_longest_list_first() -> None:
    shown, _, _ = fit_results([FOUND, FOUND[:1]], S3Protocol(), CharacterTokenizer(), 250)
    assert [len(found) for found in shown] == [1, 1]


def test_a_search_without_results_shows_an_empty_block() -> None:
    assert fit_results([[]], S3Protocol(), CharacterTokenizer(), 100)[1] == EMPTY


def test_legacy_cuts_tokens_and_keeps_every_document() -> None:
    shown, text, ids = fit_results([FOUND], S3Protocol(mode="legacy"), CharacterTokenizer(), 100)
    assert len(ids) == len(text) == 100
    assert len(shown[0]) == 4
