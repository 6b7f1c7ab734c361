"""Handles permanent refusals: ends a misconfigured run, or leaves a question out.

A refusal is not an outage: the service would refuse a second call as well. A refusal that does not depend on the
question (no key, no such model) ends the run at once. One that does (the question is invalid, its documents are too
large for the generator, the judge's reply cannot be parsed) leaves the question out. If that happens to too many
questions, the cause is not the questions, and the run ends.
"""

import logging
from collections.abc import Iterable, Mapping

from searchrl.errors import ConfigurationError, ErrorKind, ServiceError

logger = logging.getLogger(__name__)

RUN_ENDING_KINDS = frozenset({ErrorKind.UNAUTHENTICATED, ErrorKind.FORBIDDEN, ErrorKind.NOT_FOUND})
FEW = 3  # questions that may be left out of a small data set, whose share would round to 0; also named in the message


def raise_if_run_ends(what: str, error: ServiceError) -> None:
    """Raises:
    ConfigurationError: ``what`` would be refused for every question.
    """
    if error.kind in RUN_ENDING_KINDS:
        raise ConfigurationError(f"{what} is refused ({error.kind}): {error}") from error


class LeftOutQuestions:
    """The questions that a run leaves out, with the reasons; their number is bounded.

    Args:
        questions: of the data set.
        max_share: of them that may be left out.
        max_in_a_row: groups in a row that cannot be scored and end the run, whatever the share.
    """

    def __init__(self, questions: int, max_share: float, max_in_a_row: int) -> None:
        self._most = min(max(FEW, int(max_share * questions)), questions - 1)  # one is left to train on
        # A question that is left out is not drawn again, so a data set of 5 questions cannot have more than 5 refusals
        # in a row.
        self._most_in_a_row = min(max_in_a_row, questions)
        self._reasons: dict[str, str] = {}
        self._in_a_row = 0

    @property
    def reasons(self) -> Mapping[str, str]:
        """By question id."""
        return self._reasons

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._reasons

    def restore(self, reasons: Iterable[tuple[str, str]], in_a_row: int = 0) -> None:
        """Continue with the questions of an earlier process, of which the last ``in_a_row`` were left out."""
        self._reasons = dict(reasons)
        self._in_a_row = in_a_row

    def record_scored(self) -> None:
        """Record that a group was scored."""
        self._in_a_row = 0

    def add(self, question_id: str, reason: str) -> None:
        """Leave a question out from now on.

        Raises:
            ConfigurationError: there are too many.
        """
        self._in_a_row += 1
        if self._in_a_row >= self._most_in_a_row:
            raise ConfigurationError(
                f"{self._in_a_row} questions in a row cannot be scored, the last one is {question_id!r}: {reason}"
            )
        together = {**self._reasons, question_id: reason}
        if len(together) > self._most:
            named = ", ".join(repr(name) for name in list(together)[:FEW])
            raise ConfigurationError(
                f"{len(together)} questions cannot be scored, more than the {self._most} that may be left out "
                f"(rollouts.max_unscorable): {named} ...; the last reason: {reason}"
            )
        logger.warning("question %s is left out from now on: %s", question_id, reason)
        self._reasons = together  # only now: with all questions left out, the search for the next one would not end
