"""Defines the relations between entities, and the wordings in which passages and questions state them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact, written ``{s}`` (subject) and ``{o}`` (object) in its sentences.

    Attributes:
        subject: kind of entity the fact is about.
        object: kind of entity it leads to.
        nouns: words for the relation in questions ("the director of ...").
        sentences: wordings of the fact in passages; mostly with other words than the nouns.
        key_words: content words of ``sentences``, one entry per sentence, for queries in the words of the corpus.
    """

    name: str
    subject: str
    object: str
    nouns: tuple[str, ...]
    sentences: tuple[str, ...]
    key_words: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "director",
        "film",
        "person",
        ("director", "maker"),
        ("{s} was directed by {o}.", "{o} sat in the director chair for {s}."),
        ("directed", "director chair"),
    ),
    Relation(
        "studio",
        "film",
        "company",
        ("studio", "production company"),
        ("{s} was produced by {o}.", "{o} financed and released {s}."),
        ("produced", "financed released"),
    ),
    Relation(
        "birthplace",
        "person",
        "city",
        ("birthplace", "hometown"),
        ("{s} was born in {o}.", "{s} is a native of {o}."),
        ("born", "native"),
    ),
    Relation(
        "spouse",
        "person",
        "person",
        ("spouse", "partner"),
        ("{s} is married to {o}.", "{s} wed {o}."),
        ("married", "wed"),
    ),
    Relation(
        "employer",
        "person",
        "company",
        ("employer", "workplace"),
        ("{s} works for {o}.", "{s} joined the staff of {o}."),
        ("works", "joined staff"),
    ),
    Relation(
        "headquarters",
        "company",
        "city",
        ("headquarters", "main office"),
        ("{s} is based in {o}.", "{s} keeps its offices in {o}."),
        ("based", "keeps offices"),
    ),
    Relation(
        "founder",
        "company",
        "person",
        ("founder", "creator"),
        ("{s} was founded by {o}.", "{s} was started by {o}."),
        ("founded", "started"),
    ),
    Relation(
        "mayor",
        "city",
        "person",
        ("mayor", "city leader"),
        ("{o} is the mayor of {s}.", "{s} elected {o}."),
        ("mayor", "elected"),
    ),
    Relation(
        "region",
        "city",
        "region",
        ("region", "province"),
        ("{s} belongs to {o}.", "{s} lies within {o}."),
        ("belongs", "lies within"),
    ),
)

RELATION_BY_NAME = {relation.name: relation for relation in RELATIONS}

# They name an entity and state nothing, so a query that is only a name also finds passages of no use.
FILLERS: tuple[str, ...] = (
    "{s} is often mentioned in the press.",
    "{s} was the subject of a long essay.",
    "A painting of {s} hangs in a museum.",
)

OPENINGS: tuple[str, ...] = ("What is", "Name", "Tell me")


def list_relations(kind: str) -> tuple[Relation, ...]:
    """Return the relations whose subject is of this kind; none for a region."""
    return tuple(relation for relation in RELATIONS if relation.subject == kind)
