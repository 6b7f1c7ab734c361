"""Turns scripted rollouts in the small world into token sequences for supervised training, with real searches.

Each script is a generator that yields a query and receives the passages found for it. All scripts of one world run in
rounds: one batched search answers the queries of every script that waits, then each script runs to its next query or
its end. Everything runs in the event loop's thread.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from searchrl.agent.protocols.base import SearchProtocol
from searchrl.agent.types import Searcher, Tokenizer
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.small_world.demonstrations import Demonstration, ScriptOptions, demonstrate
from services.trainer.algorithms.sft import TokenDemonstration

HOP_WEIGHTS: Mapping[str, float] = {"1": 0.3, "2": 1.0, "3": 1.0}
"""How often a question of so many hops is demonstrated, relative to its share of the questions.

The initial documents answer most one-hop questions without any search, so these teach little about searching.
"""
QUERIES_PER_CALL = 128
"""Far below the retriever's default limit of 4096; a larger call holds up the retriever's other callers longer."""
WORLDS_AT_ONCE = 4
"""Worlds whose searches are in flight together, so that the retriever works while scripts of other worlds run.

More of them hold more finished demonstrations in memory, because results are yielded in the order of the worlds.
"""

Filters = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class ScriptedEpisode:
    """A demonstration in progress and the query it waits for."""

    script: Generator[str, Sequence[Passage], Demonstration]
    query: str


async def scripted_demonstrations(
    questions: Sequence[Question],
    count: int,
    searcher: Searcher,
    top_k: int,
    seed: int,
    options: ScriptOptions | None = None,
) -> AsyncIterator[Demonstration]:
    """Run ``count`` scripted rollouts on questions drawn with ``HOP_WEIGHTS``, world by world.

    The same seed, questions and index give the same demonstrations in the same order.

    Raises:
        searchrl.errors.ServiceError: a search failed.
    """
    # Seeds are strings, which ``random`` hashes with SHA-512: equal in every process, unlike ``hash``.
    rng = random.Random(f"demonstrations {seed}")
    weights = [HOP_WEIGHTS[question.metadata["hops"]] for question in questions]
    by_filters: dict[Filters, list[Question]] = {}
    for question in rng.choices(questions, weights, k=count):
        by_filters.setdefault(tuple(sorted(question.filters.items())), []).append(question)
    # A call of the retriever has one set of filters, and these select the world: its scripts share their searches.
    worlds = sorted(by_filters.items())
    for start in range(0, len(worlds), WORLDS_AT_ONCE):
        batch = worlds[start : start + WORLDS_AT_ONCE]
        finished_worlds = await asyncio.gather(
            *(
                run_script(members, dict(filters), searcher, top_k, f"{seed} {filters}", options or ScriptOptions())
                for filters, members in batch
            )
        )
        for demonstrations in finished_worlds:
            for demonstration in demonstrations:
                yield demonstration


async def run_script(
    questions: Sequence[Question],
    filters: Mapping[str, str],
    searcher: Searcher,
    top_k: int,
    seed: str,
    options: ScriptOptions,
) -> list[Demonstration]:
    """Run all demonstrations of one world in rounds: the queries of a round are searched together."""
    finished: dict[int, Demonstration] = {}
    waiting: dict[int, ScriptedEpisode] = {}
    initial = await _search([question.text for question in questions], filters, searcher, top_k)
    for number, question in enumerate(questions):
        # A random generator per script: what it draws does not depend on how many scripts still run.
        script = demonstrate(question, initial[question.text], random.Random(f"{seed} {number}"), options)
        _advance(number, script, None, waiting, finished)
    while waiting:
        found = await _search([episode.query for episode in waiting.values()], filters, searcher, top_k)
        for number, episode in list(waiting.items()):
            del waiting[number]
            _advance(number, episode.script, found[episode.query], waiting, finished)
    return [finished[number] for number in range(len(questions))]


def _advance(
    number: int,
    script: Generator[str, Sequence[Passage], Demonstration],
    results: Sequence[Passage] | None,
    waiting: dict[int, ScriptedEpisode],
    finished: dict[int, Demonstration],
) -> None:
    """Run the script up to its next query or its end."""
    try:
        query = next(script) if results is None else script.send(results)
    except StopIteration as end:
        finished[number] = end.value
    else:
        waiting[number] = ScriptedEpisode(script, query)


async def _search(
    queries: Sequence[str], filters: Mapping[str, str], searcher: Searcher, top_k: int
) -> dict[str, list[Passage]]:
    # Demonstrations are drawn with replacement, by default 500 from the 150 questions of a world, so queries repeat.
    distinct = list(dict.fromkeys(queries))
    found: dict[str, list[Passage]] = {}
    for start in range(0, len(distinct), QUERIES_PER_CALL):
        part = distinct[start : start + QUERIES_PER_CALL]
        results = await searcher.search(part, top_k, filters)
        found.update((query, [result.passage for result in row]) for query, row in zip(part, results, strict=True))
    return found


def tokenize_demonstration(
    demonstration: Demonstration, protocol: SearchProtocol, tokenizer: Tokenizer, end_id: int
) -> TokenDemonstration:
    """The token ids of a live rollout with the same turns; ``end_id`` closes the last turn."""
    # Part by part, as in a live rollout: if the text were encoded as one, characters at a border could merge into a
    # token that a rollout never contains.
    ids = tokenizer.render_prompt(protocol.render_prompt(demonstration.question.text, _rank(demonstration.initial)))
    mask = [False] * len(ids)
    for turn in demonstration.turns:
        written = tokenizer.encode(turn.text) + ([end_id] if turn.results is None else [])
        ids += written
        mask += [True] * len(written)
        if turn.results is not None:
            shown = tokenizer.encode(protocol.render_results([_rank(turn.results)]))
            ids += shown
            mask += [False] * len(shown)
    # Arrays of 4 + 1 bytes per token: 150,000 demonstrations have 18 million tokens and take 90 MB. Two lists, with
    # pointers of 8 bytes, would take 290 MB.
    return TokenDemonstration(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.bool_))  # pyright: ignore


def _rank(passages: Sequence[Passage]) -> list[SearchResult]:
    return [SearchResult(passage, 0.0, rank) for rank, passage in enumerate(passages, start=1)]
