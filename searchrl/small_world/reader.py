"""Provides the frozen reader: it answers from facts stated in the first passages it receives, else "unknown"."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from searchrl.rewards.span_match import contains_answer
from searchrl.small_world.names import NAME_PATTERN
from searchrl.small_world.relations import OPENINGS, RELATIONS
from searchrl.small_world.world import Fact

UNKNOWN = "unknown"
MAX_PASSAGES_READ = 5
"""Passages that count. A searcher that selects everything it finds pushes the useful passages out; three facts, the
longest chain, need three passages."""

_RELATION_BY_NOUN = {noun: relation.name for relation in RELATIONS for noun in relation.nouns}
_NOUN = "|".join(sorted(map(re.escape, _RELATION_BY_NOUN), key=len, reverse=True))
_QUESTION = re.compile(
    rf"\s*(?i:{'|'.join(OPENINGS)})\s+(?P<nouns>(?i:the\s+(?:{_NOUN})\s+of\s+)+)(?P<subject>{NAME_PATTERN})\s*[?.]?\s*"
)
_ONE_NOUN = re.compile(rf"the\s+({_NOUN})\s+of\s+", re.IGNORECASE)
_HEADER = r"Doc \d+ ?\(Title: .*\)\n"
# A passage's text ends before a blank line, the next header or the end; a line break alone does not end it.
_DOCUMENT = re.compile(rf"{_HEADER}(?P<text>.*(?:\n.+)*?)(?=\n\s*\n|\n{_HEADER}|\Z)")
# The layout of the prompt of the generator's judge, to which the reader replies as well.
_JUDGMENT = re.compile(r"^Golden answers:\n(?P<golden>.*?)\n\nResponse:(?P<response>.*)", re.MULTILINE | re.DOTALL)


def _compile_sentence(sentence: str) -> re.Pattern[str]:
    pattern = re.escape(sentence)
    for letter in "so":
        # ``re.escape`` has turned {s} into \{s\}.
        pattern = pattern.replace(rf"\{{{letter}\}}", f"(?P<{letter}>{NAME_PATTERN})")
    return re.compile(pattern)


_STATEMENTS = tuple(
    (relation.name, _compile_sentence(sentence)) for relation in RELATIONS for sentence in relation.sentences
)


@dataclass(frozen=True, slots=True)
class ParsedQuestion:
    """A question as a chain of ``relations``, in the order in which they are followed from ``subject``."""

    subject: str
    relations: tuple[str, ...]


def parse_question(text: str) -> ParsedQuestion | None:
    """Parse "What is the birthplace of the director of Amber Falcon?"; return None if it is not such a question."""
    match = _QUESTION.fullmatch(text)
    if match is None:
        return None
    nouns = _ONE_NOUN.findall(match["nouns"])
    relations = tuple(_RELATION_BY_NOUN[" ".join(noun.lower().split())] for noun in reversed(nouns))
    return ParsedQuestion(" ".join(match["subject"].split()), relations)


def parse_fact(text: str) -> Fact | None:
    """Return the fact that a passage's text states, or None."""
    for relation, pattern in _STATEMENTS:
        match = pattern.fullmatch(text.strip())
        if match:
            return Fact(match["s"], relation, match["o"])
    return None


def answer_from_passages(question: str, passages: Sequence[str]) -> str:
    """Follow the question's chain through the facts that the first passages' texts state."""
    parsed = parse_question(question)
    if parsed is None:
        return UNKNOWN
    known: dict[tuple[str, str], str] = {}
    for text in passages[:MAX_PASSAGES_READ]:
        fact = parse_fact(text)
        if fact is not None:
            # Worlds share names, so without the filter passages of two worlds can contradict each other: the first one
            # counts.
            known.setdefault((fact.subject, fact.relation), fact.object)
    entity = parsed.subject
    for relation in parsed.relations:
        reached = known.get((entity, relation))
        if reached is None:
            return UNKNOWN
        entity = reached
    return entity


def parse_passages(context: str) -> list[str]:
    """Return the texts of passages rendered as a line ``Doc 1 (Title: "T")``, the text, and a blank line, in order."""
    return [match["text"] for match in _DOCUMENT.finditer(context)]


def answer_from_context(question: str, context: str) -> str:
    """Answer from passages rendered into one text."""
    return answer_from_passages(question, parse_passages(context))


def answer_chat(messages: Sequence[Mapping[str, str]]) -> str:
    """Reply to a conversation as a language model would.

    The last line of the last user message is the question; any message may contain passages. A user message with
    "Golden answers:" and "Response:" asks for a verdict, and the reply is yes or no.
    """
    requests = [message["content"] for message in messages if message["role"] == "user"]
    for request in requests:
        judgment = _JUDGMENT.search(request)
        if judgment:
            golden = [line.removeprefix("- ") for line in judgment["golden"].splitlines()]
            return "yes" if contains_answer(judgment["response"], golden) else "no"
    lines = [line for request in requests for line in request.splitlines() if line.strip()]
    context = "\n\n".join(message["content"] for message in messages)
    return answer_from_context(lines[-1] if lines else "", context)
