"""What does the frozen reader answer? Only what the first passages it is shown state, else "unknown"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.small_world.names import NAME_PATTERN
from searchrl.small_world.relations import OPENINGS, RELATIONS
from searchrl.small_world.world import Fact

UNKNOWN = "unknown"
PASSAGES_READ = 5

_RELATION_BY_NOUN = {noun: relation.name for relation in RELATIONS for noun in relation.nouns}
_NOUN = "|".join(sorted(map(re.escape, _RELATION_BY_NOUN), key=len, reverse=True))
_QUESTION = re.compile(
    rf"\s*(?:{'|'.join(OPENINGS)})\s+(?P<nouns>(?:the\s+(?:{_NOUN})\s+of\s+)+)(?P<subject>{NAME_PATTERN})\s*[?.]?\s*",
    re.IGNORECASE,
)
_ONE_NOUN = re.compile(rf"the\s+({_NOUN})\s+of\s+", re.IGNORECASE)
_DOCUMENT = re.compile(
    r"^Doc \d+ ?\(Title: [^\n]*?\)[ \n](?P<text>.*?)\s*(?=^Doc \d+ ?\(Title: |\Z)", re.MULTILINE | re.DOTALL
)


def _sentence_pattern(sentence: str) -> re.Pattern[str]:
    pattern = re.escape(sentence)
    for letter in "so":
        pattern = pattern.replace(rf"\{{{letter}\}}", f"(?P<{letter}>{NAME_PATTERN})")
    return re.compile(pattern)


_STATEMENTS = tuple(
    (relation.name, _sentence_pattern(sentence)) for relation in RELATIONS for sentence in relation.sentences
)


@dataclass(frozen=True, slots=True)
class ParsedQuestion:
    """``relations`` in the order in which they are followed, starting from ``subject``."""

    subject: str
    relations: tuple[str, ...]


def parse_question(text: str) -> ParsedQuestion | None:
    """Read "What is the birthplace of the director of Amber Falcon?"; None if it is no such question."""
    match = _QUESTION.fullmatch(text)
    if match is None:
        return None
    nouns = _ONE_NOUN.findall(match["nouns"])
    relations = tuple(_RELATION_BY_NOUN[" ".join(noun.lower().split())] for noun in reversed(nouns))
    return ParsedQuestion(" ".join(match["subject"].split()), relations)


def stated_fact(text: str) -> Fact | None:
    """The fact that a passage's text states, or None."""
    for relation, pattern in _STATEMENTS:
        match = pattern.fullmatch(text.strip())
        if match:
            return Fact(match["s"], relation, match["o"])
    return None


def read(question: str, passages: Sequence[str]) -> str:
    """Follow the question's chain through the facts that the first passages' texts state."""
    parsed = parse_question(question)
    if parsed is None:
        return UNKNOWN
    known: dict[tuple[str, str], str] = {}
    for text in passages[:PASSAGES_READ]:
        fact = stated_fact(text)
        if fact is not None:
            known.setdefault((fact.subject, fact.relation), fact.object)
    entity = parsed.subject
    for relation in parsed.relations:
        reached = known.get((entity, relation))
        if reached is None:
            return UNKNOWN
        entity = reached
    return entity


def passages_in(context: str) -> list[str]:
    """Texts of passages rendered as ``Doc 1 (Title: "T")`` followed by the text, in order."""
    return [match["text"] for match in _DOCUMENT.finditer(context)]


def answer(question: str, context: str) -> str:
    """Answer from passages rendered into one text."""
    return read(question, passages_in(context))
