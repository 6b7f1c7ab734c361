"""Generates one small world: entities, passages with one fact each, and questions that chain facts."""

import random
from dataclasses import dataclass
from functools import cache

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.small_world.names import NAME_PARTS
from searchrl.small_world.relations import FILLERS, OPENINGS, RELATION_BY_NAME, RELATIONS, list_relations

ENTITY_COUNTS = {"film": 300, "person": 420, "company": 160, "city": 160, "region": 40}
"""Entities per kind at scale 1."""
MIN_ENTITIES = 6
"""Entities per kind of the smallest world. With a single person, nobody would be left to be the spouse; with very few
entities there are hardly any different questions."""
QUESTION_KINDS = ("film", "person", "company", "city")
# Naive retrieval answers questions of one fact nearly always and longer ones never, because a question names only the
# first entity of its chain. So these shares leave about 0.70 of the questions to a searcher.
HOP_SHARES = (0.30, 0.55, 0.15)
"""Shares of questions that chain one, two and three facts; the first n questions have these shares for every n."""
_MAX_DRAWS = 2000
"""Attempts to draw a new chain. If they all fail, the world has hardly any chains left that were not drawn yet."""


@dataclass(frozen=True, slots=True)
class Fact:
    subject: str
    relation: str
    object: str


@dataclass(frozen=True, slots=True)
class _Statement:
    """The content of one passage; ``relation`` is None if it states no fact."""

    subject: str
    relation: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A path along facts: ``path`` has one more entity than ``relations``; the last one is the answer."""

    relations: tuple[str, ...]
    path: tuple[str, ...]


class SmallWorld:
    """A world that depends on its arguments alone and is the same in every process.

    Attributes:
        id: such as "w017"; the value of the ``world`` filter.
        entities: names by kind.
        facts: the fact of each subject and relation.
        passages: one per fact and one without a fact per entity, in random order.
    """

    def __init__(self, id: str, seed: str, scale: float, *, reserved_names: bool = False) -> None:
        """Draw a world of ``scale`` times ``ENTITY_COUNTS``.

        ``reserved_names`` selects one of two disjoint sets of names, so that a world can have entities that occur in no
        other world. Regions have the same names in all worlds, because no question starts from one.
        """
        self.id = id
        self._seed = seed
        # The order of the draws is part of the format: another order gives other worlds for every seed. Questions draw
        # from a generator of their own, so their number does not change the facts.
        rng = random.Random(f"facts {seed}")
        self.entities = _draw_entities(rng, scale, reserved_names)
        self.facts = _draw_facts(rng, self.entities)
        statements = [_Statement(*key, _write_sentence(fact, rng)) for key, fact in self.facts.items()]
        for kind in QUESTION_KINDS:
            statements += [_Statement(name, None, rng.choice(FILLERS).format(s=name)) for name in self.entities[kind]]
        rng.shuffle(statements)
        self.passages = [
            Passage(f"{self.id}-{position:06d}", statement.subject, statement.text, {"world": self.id})
            for position, statement in enumerate(statements)
        ]
        self._passage_ids = {
            (statement.subject, statement.relation): passage.id
            for statement, passage in zip(statements, self.passages, strict=True)
        }

    def questions(self, count: int, split: str) -> list[Question]:
        """Draw ``count`` different questions; a larger count begins with the same questions.

        Raises:
            ValueError: the world is too small for so many questions.
        """
        rng = random.Random(f"questions {self._seed}")
        seen: set[tuple[str, tuple[str, ...]]] = set()
        questions: list[Question] = []
        drawn = [0, 0, 0]
        for number in range(1, count + 1):
            # The number of hops that is furthest behind its share comes next.
            # With these shares the first ten questions have 2, 1, 2, 3, 2, 1, 2, 2, 1 and 2 facts.
            owed = [share * number - have for share, have in zip(HOP_SHARES, drawn, strict=True)]
            hops = owed.index(max(owed)) + 1
            drawn[hops - 1] += 1
            chain = self._draw_unseen_chain(hops, seen, rng)
            seen.add((chain.path[0], chain.relations))
            questions.append(self._write_question(chain, len(questions), split, rng))
        return questions

    def _draw_unseen_chain(self, hops: int, seen: set[tuple[str, tuple[str, ...]]], rng: random.Random) -> Chain:
        for _ in range(_MAX_DRAWS):
            chain = self._draw_chain(hops, rng)
            if chain is not None and (chain.path[0], chain.relations) not in seen:
                return chain
        raise ValueError(f"world {self.id} has too few facts for {len(seen) + 1} different questions")

    def _draw_chain(self, hops: int, rng: random.Random) -> Chain | None:
        """Draw a path along ``hops`` facts; return None if it ends early or returns to an entity."""
        kind = rng.choice(QUESTION_KINDS)
        path = [rng.choice(self.entities[kind])]
        relations: list[str] = []
        while len(relations) < hops:
            choices = list_relations(kind)
            if not choices:
                return None
            relation = rng.choice(choices)
            relations.append(relation.name)
            path.append(self.facts[path[-1], relation.name].object)
            kind = relation.object
        return Chain(tuple(relations), tuple(path)) if len(set(path)) == len(path) else None

    def _write_question(self, chain: Chain, number: int, split: str, rng: random.Random) -> Question:
        phrase = chain.path[0]
        for name in chain.relations:
            phrase = f"the {rng.choice(RELATION_BY_NAME[name].nouns)} of {phrase}"
        gold = tuple(self._passage_ids[key] for key in zip(chain.path[:-1], chain.relations, strict=True))
        return Question(
            id=f"{self.id}-q{number:04d}",
            text=f"{rng.choice(OPENINGS)} {phrase}?",
            golden_answers=(chain.path[-1],),
            source="small-world",
            filters={"world": self.id},
            metadata={"hops": str(len(chain.relations)), "split": split},
            gold_passage_ids=gold,
        )


def _draw_entities(rng: random.Random, scale: float, reserved_names: bool) -> dict[str, list[str]]:
    """Draw distinct names for each kind."""
    entities: dict[str, list[str]] = {}
    for kind, full_count in ENTITY_COUNTS.items():
        names = _list_names(kind, reserved_names)
        entities[kind] = rng.sample(names, min(max(MIN_ENTITIES, int(full_count * scale)), len(names)))
    return entities


@cache
def _list_names(kind: str, reserved: bool) -> tuple[str, ...]:
    """Return the reserved or the other names of a kind, independent of the worlds' seeds.

    There are as many reserved names as a world of scale 1 needs.
    """
    first, second = NAME_PARTS[kind]
    # Shuffled with a fixed seed: the reserved names must be the same for worlds of every seed, or two sets could
    # overlap.
    names = [f"{a} {b}" for a in first for b in second]
    if kind == "region":
        return tuple(names)
    random.Random(f"names {kind}").shuffle(names)
    count = ENTITY_COUNTS[kind]
    return tuple(names[:count] if reserved else names[count:])


def _draw_facts(rng: random.Random, entities: dict[str, list[str]]) -> dict[tuple[str, str], Fact]:
    """Draw one object, never the subject itself, for every subject and relation."""
    facts: dict[tuple[str, str], Fact] = {}
    for relation in RELATIONS:
        for subject in entities[relation.subject]:
            candidates = [name for name in entities[relation.object] if name != subject]
            facts[subject, relation.name] = Fact(subject, relation.name, rng.choice(candidates))
    return facts


def _write_sentence(fact: Fact, rng: random.Random) -> str:
    return rng.choice(RELATION_BY_NAME[fact.relation].sentences).format(s=fact.subject, o=fact.object)
