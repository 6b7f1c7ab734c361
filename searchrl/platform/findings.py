"""Represents what a check found: one line for people, one row for programs, and what to do next."""

import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from searchrl.errors import ConfigurationError


class FindingState(StrEnum):
    """``WARNING``: works, but something is missing or may not last."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(NamedTuple):
    """One line: what was checked, what was found, what to do."""

    subject: str
    state: FindingState
    found: str
    advice: str = ""

    @property
    def line(self) -> str:
        """The finding as plain text."""
        return f"{self.state:<8} {self.subject:<13} {self.found}" + (f"; {self.advice}" if self.advice else "")


def finding_of(subject: str, check: Callable[[], str], advice: str) -> Finding:
    """Run a check that returns what it found; a ConfigurationError becomes a failure with this advice."""
    try:
        return Finding(subject, FindingState.OK, check())
    except ConfigurationError as error:
        return Finding(subject, FindingState.FAILED, str(error), advice)


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that failed."""
    return [finding for finding in findings if finding.state is FindingState.FAILED]


def findings_to_json(findings: Iterable[Finding]) -> str:
    """Encode as a JSON array of objects with ``subject``, ``state``, ``found`` and ``advice``."""
    return json.dumps([finding._asdict() for finding in findings], indent=2) + "\n"


def findings_from_json(text: str) -> list[Finding]:
    """Read what ``findings_to_json`` wrote.

    Raises:
        ValueError: ``text`` is something else.
    """
    try:
        return [
            Finding(row["subject"], FindingState(row["state"]), row["found"], row["advice"]) for row in json.loads(text)
        ]
    # The text is the output of another process, which may have printed JSON of another form before it failed.
    except (KeyError, TypeError) as error:
        raise ValueError(f"not findings: {error}") from error
