"""Checks that values read from JSON fit the fields of a dataclass."""

import difflib
from collections.abc import Iterable
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from searchrl.errors import ConfigurationError


def check_fields(values: object, kind: type[Any], where: str) -> dict[str, Any]:
    """Return the values by field name.

    Raises:
        ConfigurationError: not an object, an unknown field, or a value of another type than the field's.
    """
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where} must be a JSON object, found {type(values).__name__}")
    known = {each.name: each for each in fields(kind)}
    for name, value in values.items():
        require_known(f"field of {where}", name, known)
        if not _fits(value, known[name]):
            raise ConfigurationError(f"{where}: {name} cannot be {value!r}")
    return dict(values)


def require_known(what: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not among ``names``, and point to the nearest one.

    Raises:
        ConfigurationError: the name is unknown.
    """
    choices = list(names)
    if name in choices:
        return
    # Lower than difflib's default of 0.6: more typos get a hint, at the risk of an occasional wrong one.
    near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(choices)}"
    raise ConfigurationError(f"unknown {what} '{name}': {hint}")


def require_at_least(name: str, value: float | None, least: float) -> None:
    """Refuse a number below ``least``.

    Raises:
        ConfigurationError: the number is below ``least``.
    """
    if value is not None and value < least:
        raise ConfigurationError(f"{name} must be at least {least}, got {value}")


def _fits(value: object, declared: Field[Any]) -> bool:
    if get_origin(declared.type) is Literal:
        return isinstance(value, str)
    if get_origin(declared.type) is dict:
        return isinstance(value, dict)
    kinds = get_args(declared.type) or (declared.type,)
    # bool is a subclass of int, so it is checked first: true is not a number of searches.
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, dict):
        return any(is_dataclass(kind) for kind in kinds)
    return type(value) in kinds or (isinstance(value, int) and float in kinds)
