"""Converts metadata values to one text form, so that a question's filter equals a passage's metadata."""

import json
import math


def metadata_text(value: object) -> str | None:
    """Return the text of a JSON value; None for a missing one (null, NaN).

    | value | text |
    |---|---|
    | text | itself |
    | true, false | "true", "false" |
    | 5, 5.0 | "5" |
    | 2.5 | "2.5" |
    | list, object | compact JSON |
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number_text(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def number_text(value: int | float) -> str:
    """Return a number as a person writes it: 1969 and 1969.0 are both "1969"."""
    # Above 2**53 a float cannot represent every integer, so its digits would claim a precision it does not have.
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
