"""Renders prompts and documents for language models, and records which characters came from outside.

This is the only place that writes documents as "Doc n (Title: ...)", for searchers and generators alike.
"""

import re
from collections.abc import Iterable, Sequence
from enum import Enum

from searchrl.agent.untrusted_text import defuse_structure, defuse_title, tags_in
from searchrl.domain.guarded_text import GuardedText
from searchrl.domain.passage import Passage, SearchResult

# Not str.format: a template may show JSON, whose braces are no placeholders.
_PLACEHOLDER = re.compile(r"\{(question|documents)\}")
READY_MADE = "{question}"
"""The template for questions that are complete prompts already; their tags are meant and stay intact."""


class DocumentForm(Enum):
    """Separators of a rendered document: before the title, before the text, and after the text.

    They differ by one blank or line break because published checkpoints were trained on exactly these forms.
    """

    OBSERVATION = ("(", " ", "\n")
    """Form of the documents that s3 and Search-R1 show after a search."""
    FIRST_DOCUMENTS = (" (", " ", "\n")
    """Form of the documents of the first search in s3's prompts."""
    CONTEXT = (" (", "\n", "\n\n")
    """Form of the documents that the frozen generator reads."""


def render_document(
    number: int,
    passage: Passage,
    form: DocumentForm,
    *,
    more_tags: Iterable[str] = (),
    exact_title: bool = False,
) -> GuardedText:
    """Render one numbered document; its title and text can contain neither tags nor document headers.

    Args:
        more_tags: tags of the prompt beside the known ones, which are broken as well.
        exact_title: keep quotation marks in the title, as published checkpoints saw it. By default they become
            apostrophes, because with them a title could seem to end early.
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


def render_documents(
    results: Sequence[SearchResult],
    form: DocumentForm = DocumentForm.OBSERVATION,
    *,
    more_tags: Iterable[str] = (),
    exact_titles: bool = False,
) -> GuardedText:
    """Render the documents of one search, numbered from 1."""
    return GuardedText.join_parts(
        *(
            render_document(number, result.passage, form, more_tags=more_tags, exact_title=exact_titles)
            for number, result in enumerate(results, start=1)
        )
    )


def render_information_block(results: Sequence[SearchResult], more_tags: Iterable[str] = ()) -> GuardedText:
    """Render documents, numbered from 1, between information tags."""
    lines = render_documents(results, more_tags=more_tags)
    return GuardedText.join_parts("<information>", lines, "</information>")


def render_observation(results: Sequence[Sequence[SearchResult]], more_tags: Iterable[str] = ()) -> GuardedText:
    """Render one information block per query, separated by blank lines."""
    blocks = (part for found in results for part in ("\n\n", render_information_block(found, more_tags)))
    return GuardedText.join_parts(*blocks, "\n\n")


def render_legacy_observation(results: Sequence[Sequence[SearchResult]]) -> GuardedText:
    """Render as ``render_observation`` does, but stripped inside the tags, as published checkpoints saw it."""
    parts: list[str] = []
    for found in results:
        # GuardedText.strip keeps the untrusted ranges.
        lines = render_documents(found, exact_titles=True).strip()
        parts += ["\n\n<information>", lines, "</information>"]
    return GuardedText.join_parts(*parts, "\n\n")


def fill_template(template: str, question: str, documents: str) -> GuardedText:
    """Replace ``{question}`` and ``{documents}``, once each time they occur in the template itself.

    Other braces stay, so a template may show JSON. The template ``{question}`` passes ready-made prompts through; in
    any other template the tags and document headers of the question are broken.
    """
    if template.strip() != READY_MADE:
        question = defuse_structure(question, tags_in(template))
    values = {"question": GuardedText.from_outside(question), "documents": documents}
    parts: list[str] = []
    position = 0
    # One pass over the template alone. Replacing one name after the other would also replace a "{documents}" that the
    # question contains.
    for match in _PLACEHOLDER.finditer(template):
        parts += [template[position : match.start()], values[match[1]]]
        position = match.end()
    return GuardedText.join_parts(*parts, template[position:])


def distinct_by_id(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """Return the passages in order, each id once: the first passage of an id is kept."""
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(passage.id, passage)
    return tuple(first.values())
