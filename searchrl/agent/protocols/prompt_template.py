"""How does a prompt template become a prompt?"""

import re

_PLACEHOLDER = re.compile(r"\{(question|documents)\}")


def fill_template(template: str, question: str, documents: str) -> str:
    """Replace ``{question}`` and ``{documents}``, once each time they occur in the template itself.

    Other braces stay, so a template may show JSON. The template ``{question}`` passes ready-made prompts through.
    """
    values = {"question": question, "documents": documents}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)
