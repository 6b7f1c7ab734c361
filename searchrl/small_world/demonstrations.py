"""Generates demonstrations by a scripted searcher for supervised fine-tuning.

The script writes good queries but judges poorly when to stop and what to select: the warm start teaches the skill of
querying, and reinforcement learning teaches the judgment.
"""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.small_world.reader import ParsedQuestion, parse_fact, parse_question
from searchrl.small_world.relations import RELATION_BY_NAME, RELATIONS, Relation

MAX_SEARCHES = 3
"""As many as the default limits of a rollout allow; the longest chains have three facts."""


@dataclass(frozen=True, slots=True)
class ScriptOptions:
    """Probabilities of the scripted searcher's errors.

    The defaults make the warm start: most queries name the right entity, but stopping and selecting are often wrong, so
    reinforcement learning has something to improve. Zeros make the oracle.

    Attributes:
        random_selection: selects documents at random instead of the useful ones.
        premature_stop: declares the search complete although a fact is missing.
        needless_search: continues to search although every fact was seen.
        wrong_entity: queries some title it has seen.
        no_relation_words: the query is only the name of an entity.
        wrong_relation_words: the query asks for another relation.
        question_words: the query uses the question's noun; otherwise key words of one of the corpus' sentences.
        every_key_word: uses the key words of all sentences, so that the query matches any wording of the passage.
    """

    random_selection: float = 0.35
    premature_stop: float = 0.45
    needless_search: float = 0.25
    wrong_entity: float = 0.02
    no_relation_words: float = 0.30
    wrong_relation_words: float = 0.10
    question_words: float = 0.30
    every_key_word: bool = False


ORACLE = ScriptOptions(0, 0, 0, 0, 0, 0, 0, every_key_word=True)


@dataclass(frozen=True, slots=True)
class DemonstratedTurn:
    """The text that the searcher wrote, and the passages found by its query; None after the last turn."""

    text: str
    results: tuple[Passage, ...] | None = None


@dataclass(frozen=True, slots=True)
class Demonstration:
    question: Question
    initial: tuple[Passage, ...]
    turns: tuple[DemonstratedTurn, ...]


def render_turn(selection: Sequence[int], query: str | None) -> str:
    """Return a turn of the s3 protocol; without a query it declares the search complete."""
    text = (
        f"<important_info>[{', '.join(map(str, selection))}]</important_info>"
        f"<search_complete>{query is None}</search_complete>"
    )
    return text if query is None else f'{text}<query>{{"query": "{query}"}}</query>'


def demonstrate(
    question: Question, initial: Sequence[Passage], rng: random.Random, options: ScriptOptions
) -> Generator[str, Sequence[Passage], Demonstration]:
    """Generate one rollout: yields queries, receives the passages found, returns the demonstration.

    Raises:
        ValueError: the question is not one of the small world's.
    """
    parsed = parse_question(question.text)
    if parsed is None:
        raise ValueError(f"not a question of the small world: {question.text!r}")
    block = list(initial)
    seen = list(initial)
    turns: list[DemonstratedTurn] = []
    while True:
        selection = _select(question, block, rng, options)
        entity, facts_seen = _follow_chain(parsed, seen)
        complete = facts_seen == len(parsed.relations)
        if rng.random() < (options.needless_search if complete else options.premature_stop):
            complete = not complete
        if complete or len(turns) == MAX_SEARCHES:
            turns.append(DemonstratedTurn(render_turn(selection, None)))
            return Demonstration(question, tuple(initial), tuple(turns))
        if rng.random() < options.wrong_entity:
            entity = rng.choice([parsed.subject, *(passage.title for passage in block)])
        # A needless search has no fact left to look for, so it repeats the last relation.
        relation = RELATION_BY_NAME[parsed.relations[min(facts_seen, len(parsed.relations) - 1)]]
        query = " ".join(filter(None, (entity, _choose_relation_words(relation, rng, options))))
        block = list((yield query))
        seen += block
        turns.append(DemonstratedTurn(render_turn(selection, query), tuple(block)))


def _select(question: Question, block: Sequence[Passage], rng: random.Random, options: ScriptOptions) -> list[int]:
    """Return 1-based positions of the passages that state a fact of the question's chain, or random ones."""
    if rng.random() < options.random_selection:
        count = min(rng.choice((0, 1, 1, 2)), len(block))
        return sorted(rng.sample(range(1, len(block) + 1), count))
    return [position for position, passage in enumerate(block, 1) if passage.id in question.gold_passage_ids]


def _follow_chain(parsed: ParsedQuestion, seen: Sequence[Passage]) -> tuple[str, int]:
    """Follow the question's chain through the facts seen so far; return the entity reached and the facts followed."""
    facts = [fact for fact in (parse_fact(passage.text) for passage in seen) if fact]
    known = {(fact.subject, fact.relation): fact.object for fact in facts}
    entity = parsed.subject
    for followed, relation in enumerate(parsed.relations):
        if (entity, relation) not in known:
            return entity, followed
        entity = known[entity, relation]
    return entity, len(parsed.relations)


def _choose_relation_words(relation: Relation, rng: random.Random, options: ScriptOptions) -> str:
    # One draw decides among four exclusive kinds of words, and each subtraction removes the share of a kind. With the
    # defaults: below 0.30 none, below 0.40 of another relation, below 0.70 the question's, else the corpus'.
    draw = rng.random()
    if draw < options.no_relation_words:
        return ""
    draw -= options.no_relation_words
    if draw < options.wrong_relation_words:
        other = rng.choice(RELATIONS)
        return rng.choice(other.nouns + other.key_words)
    draw -= options.wrong_relation_words
    if draw < options.question_words:
        return rng.choice(relation.nouns)
    return " ".join(relation.key_words) if options.every_key_word else rng.choice(relation.key_words)
