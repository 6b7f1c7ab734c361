"""Writes documents for language models: the only renderer of "Doc n (Title: ...)" in the project."""

from collections.abc import Iterable, Sequence
from enum import Enum

from searchrl.agent.untrusted_text import defuse_structure, defuse_title
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult


class DocumentForm(Enum):
    """What stands between number, title and text, and behind the text."""

    OBSERVATION = ("(", " ", "\n")
    """What s3 and Search-R1 show after a search."""
    FIRST_DOCUMENTS = (" (", " ", "\n")
    """How s3's prompts show the documents of the first search."""
    CONTEXT = (" (", "\n", "\n\n")
    """What the frozen generator reads."""


def render_document(
    number: int,
    passage: Passage,
    form: DocumentForm,
    *,
    more_tags: Iterable[str] = (),
    exact_title: bool = False,
) -> GuardedText:
    """One numbered document whose title and text can hold neither tags nor headers.

    Args:
        more_tags: tags of the prompt beside the known ones, which are broken as well.
        exact_title: keep quotation marks in the title, as published checkpoints saw it. Otherwise a title could seem
            to end early.
    """
    before_title, before_text, after_text = form.value
    title = defuse_title(passage.title, more_tags, quotes=not exact_title)
    return GuardedText.join_parts(
        f'Doc {number}{before_title}Title: "',
        GuardedText.from_outside(title),
        f'"){before_text}',
        GuardedText.from_outside(defuse_structure(passage.text, more_tags)),
        after_text,
    )


def document_lines(
    results: Sequence[SearchResult],
    form: DocumentForm = DocumentForm.OBSERVATION,
    *,
    more_tags: Iterable[str] = (),
    exact_titles: bool = False,
) -> GuardedText:
    """The documents of one search, numbered from 1."""
    return GuardedText.join_parts(
        *(
            render_document(number, result.passage, form, more_tags=more_tags, exact_title=exact_titles)
            for number, result in enumerate(results, start=1)
        )
    )


def information_block(results: Sequence[SearchResult], more_tags: Iterable[str] = ()) -> GuardedText:
    """Documents numbered from 1 between information tags."""
    lines = document_lines(results, more_tags=more_tags)
    return GuardedText.join_parts("<information>", lines, "</information>")


def observation(results: Sequence[Sequence[SearchResult]], more_tags: Iterable[str] = ()) -> GuardedText:
    """One information block per query, set off by blank lines."""
    blocks = (part for found in results for part in ("\n\n", information_block(found, more_tags)))
    return GuardedText.join_parts(*blocks, "\n\n")


def legacy_observation(results: Sequence[Sequence[SearchResult]]) -> GuardedText:
    """As ``observation``, but stripped inside the tags, as published checkpoints saw it."""
    parts: list[str] = []
    for found in results:
        lines = document_lines(found, exact_titles=True).strip()
        parts += ["\n\n<information>", lines, "</information>"]
    return GuardedText.join_parts(*parts, "\n\n")


def distinct_by_id(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The passages in order, without those whose id came before."""
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(passage.id, passage)
    return tuple(first.values())
