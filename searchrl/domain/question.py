"""Defines a question: its three texts, its options, and the answers that count as right."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OPTIONS_HEADING = "\nOptions:\n"
"""Separates a question from its options, as in s3's medical questions."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of a multiple-choice question: its letter and its text."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answers that count as right.

    Attributes:
        text: what the policy reads.
        golden_answers: each of them is right. For multiple choice: the label and the text of the right options.
        source: name of the collection it comes from.
        filters: metadata values that every search for this question requires.
        choices: the options of a multiple-choice question, in their order.
        generator_text: what the generator and the judge read; by default ``text`` with the options.
        retrieval_query: the query of the first search; by default ``text`` without the options it contains.
    """

    id: str
    text: str
    golden_answers: tuple[str, ...] = ()
    source: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    gold_passage_ids: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    generator_text: str = ""
    retrieval_query: str = ""

    def __post_init__(self) -> None:
        has_options = OPTIONS_HEADING in self.text
        generator_text = self.text if has_options else with_options(self.text, self.choices)
        stem = self.text.partition(OPTIONS_HEADING)[0].strip() or self.text if has_options else self.text
        # A frozen dataclass can set its own fields only through object.__setattr__.
        object.__setattr__(self, "generator_text", self.generator_text or generator_text)
        object.__setattr__(self, "retrieval_query", self.retrieval_query or stem)


def question_content(question: Question) -> bytes:
    """Serialize everything that a reward reads of a question, independent of the file format it came from."""
    # Fields in JSON rather than one joined text: its quotes tell ["ab", "c"] from ["a", "bc"]. Sources, metadata and
    # gold passages are left out, because no reward depends on them.
    fields: list[object] = [
        question.id, question.text, list(question.golden_answers), sorted(question.filters.items()),
    ]  # fmt: skip
    if question.choices or question.retrieval_query != question.text or question.generator_text != question.text:
        choices = [[choice.label, choice.text] for choice in question.choices]
        fields += [question.generator_text, question.retrieval_query, choices]
    return json.dumps(fields, ensure_ascii=False).encode()


def question_sha256(question: Question) -> str:
    """Return the fingerprint of one question: it changes with its texts, options, golden answers or filters."""
    return hashlib.sha256(question_content(question)).hexdigest()


def with_options(question: str, choices: Sequence[Choice]) -> str:
    """Return the question followed by its options, one per line; the question alone if it has none."""
    if not choices:
        return question
    return question + OPTIONS_HEADING + "\n".join(f"{choice.label}: {choice.text}" for choice in choices)
