"""Demonstrations of the scripted searcher: their number, their mix of hops, their masks, and the untrained model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.errors import Unavailable
from searchrl.small_world.demonstrations import DemonstratedTurn, Demonstration, render_turn
from searchrl.small_world.world import SmallWorld
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.small_world.scripted_demonstrations import (
    QUERIES_PER_CALL,
    scripted_demonstrations,
    tokenize_demonstration,
)
from services.trainer.small_world.untrained_model import SMALL_WORLD_PROFILE, write_untrained_model

WORLDS = [SmallWorld(f"w{number:03d}", f"0/train/{number}", 0.1) for number in range(3)]
QUESTIONS = [question for world in WORLDS for question in world.questions(40, "train")]


class TitleSearcher:
    """Finds the passages whose title the query starts with, otherwise those whose title it contains."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[tuple[list[str], dict[str, str]]] = []
        self._fails = fails
        self._by_world = {world.id: world.passages for world in WORLDS}

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        if self._fails:
            raise Unavailable("the retriever is gone")
        self.calls.append((list(queries), dict(filters)))
        passages = self._by_world[filters["world"]]
        return [
            [SearchResult(p, 1.0, rank) for rank, p in enumerate([p for p in passages if p.title in query][:top_k], 1)]
            for query in queries
        ]


async def gather(count: int, seed: int = 0, searcher: TitleSearcher | None = None) -> list[Demonstration]:
    script = scripted_demonstrations(QUESTIONS, count, searcher or TitleSearcher(), top_k=3, seed=seed)
    return [demonstration async for demonstration in script]


async def test_as_many_demonstrations_as_asked_for_with_fewer_one_hop_questions() -> None:
    made = await gather(600)
    hops = Counter(demonstration.question.metadata["hops"] for demonstration in made)
    available = Counter(question.metadata["hops"] for question in QUESTIONS)
    assert len(made) == 600
    # one hop counts .3, two and three hops 1: shares of the draw follow the weighted shares of the questions,
    # with a standard error of at most .02 for 600 draws
    total = 0.3 * available["1"] + available["2"] + available["3"]
    assert hops["1"] / 600 == pytest.approx(0.3 * available["1"] / total, abs=0.05)


async def test_the_same_seed_gives_the_same_demonstrations() -> None:
    assert await gather(50) == await gather(50)
    assert await gather(50) != await gather(50, seed=1)


async def test_queries_of_one_world_are_sent_in_one_call_each_once() -> None:
    searcher = TitleSearcher()
    await gather(300, searcher=searcher)
    # per world: the questions, then at most three rounds of queries
    assert len(searcher.calls) <= len(WORLDS) * 4
    assert all(len(queries) == len(set(queries)) <= QUERIES_PER_CALL for queries, _ in searcher.calls)
    assert {filters["world"] for _, filters in searcher.calls} == {world.id for world in WORLDS}


async def test_every_demonstration_shows_what_the_searcher_returned() -> None:
    for demonstration in await gather(60):
        world = demonstration.question.filters["world"]
        passages = [*demonstration.initial, *(p for turn in demonstration.turns for p in turn.results or ())]
        assert {passage.metadata["world"] for passage in passages} == {world}


async def test_a_failing_retriever_ends_the_job() -> None:
    with pytest.raises(Unavailable):
        await gather(10, searcher=TitleSearcher(fails=True))


def test_the_mask_covers_what_the_searcher_wrote_and_the_end_token(tmp_path: Path) -> None:
    write_untrained_model(tmp_path, seed=0)
    tokenizer = ModelTokenizer.from_folder(tmp_path)
    (eos,) = tokenizer.eos_ids
    found = (Passage("w000-000001", "Amber Falcon", "Amber Falcon was directed by Clara Whitfield."),)
    question = Question("q", "What is the director of Amber Falcon?")
    first, last = render_turn([], "Amber Falcon"), render_turn([1], None)
    demonstration = Demonstration(question, (), (DemonstratedTurn(first, found), DemonstratedTurn(last)))
    rows = tokenize_demonstration(demonstration, SMALL_WORLD_PROFILE.build_protocol(), tokenizer, eos)
    written = [id for id, own in zip(rows.token_ids, rows.action_mask, strict=True) if own]
    assert written == [*tokenizer.encode(first), *tokenizer.encode(last), eos]
    text = tokenizer.decode([int(id) for id in rows.token_ids])
    assert text.startswith("Find documents that answer the question.<question>What is the director of Amber Falcon?")
    assert '(Title: "Amber Falcon") Amber Falcon was directed by Clara Whitfield.' in text


def test_an_untrained_folder_holds_the_profile_of_the_small_world(tmp_path: Path) -> None:
    write_untrained_model(tmp_path, seed=0)
    profile = SearcherProfile.from_json((tmp_path / "searcher.json").read_text())
    assert profile == SMALL_WORLD_PROFILE
    assert (profile.limits.max_searches, profile.limits.top_k, profile.limits.max_turn_tokens) == (3, 3, 26)


def test_untrained_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_untrained_model(tmp_path / name, seed)
    first, again, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("first", "again", "other"))
    assert first == again
    assert first != other
