"""Which known name did a misspelt one mean?"""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence that refuses ``name`` and points to the nearest known one."""
    choices = sorted(known)
    near = difflib.get_close_matches(name.lower(), [choice.lower() for choice in choices], n=1, cutoff=0.5)
    hint = next((choice for choice in choices if near and choice.lower() == near[0]), None)
    if hint is not None:
        return f"unknown {what} '{name}': did you mean '{hint}'?"
    return f"unknown {what} '{name}'; known: {', '.join(choices) or 'none'}"
