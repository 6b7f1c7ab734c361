"""Fills a prompt template with a question and documents, and records which characters are untrusted."""

import re

from searchrl.agent.untrusted_text import defuse_structure, tags_in
from searchrl.domain.guarded_text import GuardedText

_PLACEHOLDER = re.compile(r"\{(question|documents)\}")
READY_MADE = "{question}"
"""The template for questions that are complete prompts already; their tags are meant and stay intact."""


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
    for match in _PLACEHOLDER.finditer(template):
        parts += [template[position : match.start()], values[match[1]]]
        position = match.end()
    return GuardedText.join_parts(*parts, template[position:])
