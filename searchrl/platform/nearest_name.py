"""Refuses unknown names with the nearest known one."""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence that refuses ``name`` and suggests the nearest known one, or lists all of them."""
    choices = sorted(known)
    # A cutoff of 0.5, below difflib's 0.6, also finds short names with two wrong letters.
    near = difflib.get_close_matches(name.lower(), [choice.lower() for choice in choices], n=1, cutoff=0.5)
    # Compared in lower case, because environment variables are upper case; suggested as it is spelled.
    hint = next((choice for choice in choices if near and choice.lower() == near[0]), None)
    if hint is not None:
        return f"unknown {what} '{name}': did you mean '{hint}'?"
    return f"unknown {what} '{name}'; known: {', '.join(choices) or 'none'}"
