"""Reads the JSON files of a model folder."""

import json
from pathlib import Path

from searchrl.errors import ConfigurationError


def read_json(file: Path) -> dict[str, object]:
    """Return the object in a JSON file; an empty one if there is no such file.

    Raises:
        ConfigurationError: the file is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{file} must hold a JSON object")
    return values
