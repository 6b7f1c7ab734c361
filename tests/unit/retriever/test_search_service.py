"""The search service: refused requests, answers, failures, and swaps and builds while it serves."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from searchrl.errors import DeadlineExceeded, ErrorKind, InvalidRequest, TooLarge, Unavailable
from searchrl.platform.request_context import deadline
from services.retriever.generations.build_jobs import BuildSettings
from services.retriever.generations.index_store import IndexStore
from services.retriever.grpc_servicer import search_to_wire
from services.retriever.indexes.manifest import Manifest
from services.retriever.ranking import RankingFailure
from services.retriever.search_service import QueryOutcome, SearchAnswer, SearchService
from services.retriever.serving.active_index import ActiveIndex

Build = Callable[..., Manifest]
MakeService = Callable[..., SearchService]


@pytest.fixture
async def service(
    make_service: MakeService, active_index: ActiveIndex, store: IndexStore, corpus: Path, build_bm25: Build
) -> SearchService:
    build_bm25(store, corpus)
    await active_index.load_current()
    return make_service(max_query_characters=100, max_queries=10, max_results=500)


async def test_results_have_passages_ranks_from_one_and_falling_scores(service: SearchService) -> None:
    answer = await service.search(["director Lena Holt", "capital of Norway"], None, "", {})
    first, second = answer.outcomes
    assert [result.passage.id for result in first.results] == ["b", "a"]
    assert [result.rank for result in first.results] == [1, 2]
    assert first.results[0].score > first.results[1].score
    assert second.results[0].passage.title == "Oslo"
    assert answer.generation.split("-")[1] == "bm25"


async def test_filters_restrict_every_query(service: SearchService) -> None:
    answer = await service.search(["Oslo", "Lena"], 3, "bm25", {"world": "w2"})
    assert [[result.passage.id for result in outcome.results] for outcome in answer.outcomes] == [["c"], []]
    assert [outcome.failure for outcome in answer.outcomes] == [None, None]


async def test_a_bad_query_fails_alone(service: SearchService) -> None:
    answer = await service.search(["Oslo", "", " \n", "Norway"], 1, "", {})
    empty = RankingFailure(ErrorKind.INVALID, "the query is empty")
    assert [outcome.failure for outcome in answer.outcomes] == [None, empty, empty, None]
    assert [len(outcome.results) for outcome in answer.outcomes] == [1, 0, 0, 1]


@pytest.mark.parametrize(("kind", "later"), [(ErrorKind.INTERNAL, 1.0), (ErrorKind.INVALID, None)])
def test_only_an_outage_says_when_to_retry_the_query(kind: ErrorKind, later: float | None) -> None:
    wire = search_to_wire(SearchAnswer("g1", [QueryOutcome((), RankingFailure(kind, "why"))])).queries[0]
    assert (wire.failure.kind, wire.failure.HasField("retry_after_seconds")) == (kind, later is not None)
    assert wire.failure.retry_after_seconds == (later or 0.0)


async def test_a_query_that_is_too_long_is_cut(service: SearchService) -> None:
    long, cut = (await service.search(["Oslo " * 21 + "Lena", "Oslo " * 20], 3, "", {})).outcomes
    assert long == cut and long.results[0].passage.id == "c"


async def test_a_lone_surrogate_counts_as_a_replacement_character(service: SearchService) -> None:
    odd, plain = (await service.search(["Oslo \ud83d", "Oslo \ufffd"], 1, "", {})).outcomes
    assert odd == plain and odd.failure is None


async def test_more_results_than_one_answer_may_have_are_refused(service: SearchService) -> None:
    with pytest.raises(TooLarge, match="10 queries with 100 results each are 1000 results"):
        await service.search(["Oslo"] * 10, 100, "", {})


@pytest.mark.parametrize("queries", [["poison"], ["poison 1", "poison 2"]])
async def test_a_request_whose_every_query_fails_inside_is_unavailable(
    service: SearchService, active_index: ActiveIndex, gated_ranker, monkeypatch: pytest.MonkeyPatch, queries: list[str]
) -> None:
    monkeypatch.setitem(active_index.get().first_stages, "bm25", (gated_ranker,))  # pyright: ignore[reportArgumentType]
    for call in (service.search(queries, 1, "", {}), service.retrieve(queries, 1)):
        with pytest.raises(Unavailable, match=r"could (not )?be ranked"):
            await call


async def test_a_query_that_cannot_be_ranked_fails_alone_in_search_and_fails_the_request_in_retrieve(
    service: SearchService, active_index: ActiveIndex, gated_ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(active_index.get().first_stages, "bm25", (gated_ranker,))  # pyright: ignore[reportArgumentType]
    good, bad = (await service.search(["Oslo", "poison"], 1, "", {})).outcomes
    assert good.failure is None and bad.failure is not None and bad.failure.kind is ErrorKind.INTERNAL
    with pytest.raises(Unavailable, match="1 of 2 queries could not be ranked"):
        await service.retrieve(["Oslo", "poison"], 1)


async def test_no_queries_give_no_answers(service: SearchService) -> None:
    assert (await service.search([], 1, "", {})).outcomes == []


async def test_a_repeated_query_is_ranked_once_and_answered_each_time(service: SearchService) -> None:
    answer = await service.search(["Oslo", "  Oslo ", "Oslo"], 1, "", {})
    assert len({outcome.results[0].score for outcome in answer.outcomes}) == 1


@pytest.mark.parametrize(("top_k", "mode"), [(0, ""), (-1, ""), (101, ""), (3, "dense"), (3, "rubbish")])
async def test_a_top_k_or_mode_that_the_index_lacks_is_refused(service: SearchService, top_k: int, mode: str) -> None:
    with pytest.raises(InvalidRequest):
        await service.search(["Oslo"], top_k, mode, {})


async def test_too_many_queries_are_refused(service: SearchService) -> None:
    with pytest.raises(TooLarge, match="11 queries"):
        await service.search(["Oslo"] * 11, 1, "", {})


async def test_without_an_index_searches_are_unavailable(make_service: MakeService) -> None:
    with pytest.raises(Unavailable):
        await make_service().search(["Oslo"], 1, "", {})


async def test_passages_come_in_the_order_asked_and_unknown_ids_are_named(service: SearchService) -> None:
    passages, missing, generation = await service.get_passages(["c", "nope", "a", "c"])
    assert [passage.id for passage in passages] == ["c", "a", "c"]
    assert missing == ["nope"]
    assert generation == (await service.search(["Oslo"], 1, "", {})).generation


async def test_rows_are_returned_as_the_corpus_has_them(service: SearchService) -> None:
    (found,) = await service.retrieve(["capital of Norway"], 1)
    assert found.rows[0].document == {
        "id": "c",
        "contents": '"Oslo"\nThe capital of Norway.',
        "metadata": {"world": "w2"},
    }


async def test_a_deadline_ends_the_wait(
    service: SearchService, active_index: ActiveIndex, gated_ranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated_ranker.gate.clear()
    monkeypatch.setitem(active_index.get().first_stages, "bm25", (gated_ranker,))  # pyright: ignore[reportArgumentType]
    with deadline(0.05), pytest.raises(DeadlineExceeded):
        await service.search(["Oslo"], 1, "", {})
    gated_ranker.gate.set()


async def test_swapping_generations_under_load_loses_no_request(
    service: SearchService, store: IndexStore, corpus: Path, build_bm25: Build
) -> None:
    generations = [store.current(), build_bm25(store, corpus, activate=False).generation]
    seen: set[str] = set()
    stop = asyncio.Event()

    async def client(number: int) -> int:
        count = 0
        while not stop.is_set():
            answer = await service.search([f"Oslo Norway {number} {count}"], 1, "", {})
            assert answer.outcomes[0].results[0].passage.id == "c"
            seen.add(answer.generation)
            count += 1
        return count

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    for swap in range(20):
        await service.activate_index(generations[swap % 2] or "")
    stop.set()
    assert sum(await asyncio.gather(*clients)) > 0
    assert seen == set(generations)


async def test_a_build_reports_progress_and_its_generation_goes_into_service(
    service: SearchService, corpus: Path
) -> None:
    steps = [step async for step in service.build_index(str(corpus), "bm25", activate=True)]
    assert {"read", "bm25", "finish", "done"} <= {step.phase for step in steps}
    indexes = service.list_indexes()
    assert [manifest.generation for manifest, active in indexes if active] == [steps[-1].generation]
    assert len(indexes) == 2


async def test_a_build_that_is_not_activated_changes_nothing(service: SearchService, corpus: Path) -> None:
    before = (await service.search(["Oslo"], 1, "", {})).generation
    assert [step async for step in service.build_index(str(corpus), "bm25", activate=False)][-1].generation != before
    assert (await service.search(["Oslo"], 1, "", {})).generation == before


@pytest.mark.parametrize(
    ("corpus_text", "kind", "message"),
    [("rubbish\n", "bm25", "unusable rows"), ("", "bm25", "no usable row"), ("x", "colbert", "unknown kind"),
     (None, "bm25", "there is no corpus file"), ("{}", "dense", "needs an encoder")],
)  # fmt: skip
async def test_a_build_that_cannot_work_is_the_callers_error(
    service: SearchService, tmp_path: Path, corpus_text: str | None, kind: str, message: str
) -> None:
    file = tmp_path / "bad.jsonl"
    if corpus_text is not None:
        file.write_text(corpus_text)
    with pytest.raises(InvalidRequest, match=message):
        _ = [step async for step in service.build_index(str(file), kind, activate=True)]


async def test_corpora_outside_the_allowed_folder_are_refused(
    make_service: MakeService, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "allowed").mkdir()
    service = make_service(BuildSettings(corpus_root=tmp_path / "allowed"))
    for path in (corpus, tmp_path / "allowed" / ".." / "corpus.jsonl"):
        with pytest.raises(InvalidRequest, match="must be under"):
            _ = [step async for step in service.build_index(str(path), "bm25", activate=False)]
