"""Which questions does naive RAG answer? The file that the evaluator writes for Gain Beyond RAG."""

import json
from pathlib import Path

from searchrl.errors import ConfigurationError


def read_baseline(path: Path) -> dict[str, bool]:
    """Read ``{"entries": [{"question_id": .., "correct": ..}, ..]}``.

    Raises:
        ConfigurationError: the file is missing or has another shape.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(entry["question_id"]): bool(entry["correct"]) for entry in content["entries"]}
    except OSError as error:
        raise ConfigurationError(f"cannot read the baseline file {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a naive-RAG baseline written by the evaluator: {error}") from error
