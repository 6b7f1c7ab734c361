"""Reads the validation questions, refuses those that the run is trained on, and names the set of them."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from searchrl.datasets.question_file import dataset_fingerprint, read_training_questions
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError
from services.trainer.validation.settings import ValidationSettings

logger = logging.getLogger(__name__)

NAMED = 3  # ids in a message; more would hide the sentence


def read_validation_questions(settings: ValidationSettings, training: Sequence[Question]) -> tuple[Question, ...]:
    """Read the questions; none if the run is not validated.

    Raises:
        ConfigurationError: the file cannot be used or is empty, or has questions of the training and may not.
    """
    if settings.questions is None:
        return ()
    questions = read_training_questions(settings.questions).questions
    shared = find_shared(questions, training)
    if shared:
        named = ", ".join(repr(question.id) for question in shared[:NAMED])
        more = " ..." if len(shared) > NAMED else ""
        found = (
            f"{len(shared)} of {len(questions)} questions in {settings.questions} are also trained on: {named}{more}"
        )
        if settings.overlap == "refuse":
            raise ConfigurationError(
                f"validation.questions: {found}; remove them, or set validation.overlap to warn: the policy may know "
                "their answers"
            )
        logger.warning("%s; their answers may be known to the policy", found)
    return questions


def fingerprint_question_set(questions: Sequence[Question], baselines: Path | None) -> str:
    """Return what two validations must share to be comparable: the questions, and the results they are compared with.

    Raises:
        ConfigurationError: the file with these results cannot be read.
    """
    found = dataset_fingerprint(questions)
    if baselines is None:
        return found
    try:
        content = baselines.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the baselines of the validation cannot be read: {baselines}: {error}") from error
    return hashlib.sha256(found.encode() + content).hexdigest()


def find_shared(questions: Sequence[Question], training: Sequence[Question]) -> list[Question]:
    """Return the questions whose text and filters are also in ``training``, whatever their ids."""
    trained = {_content(question) for question in training}
    return [question for question in questions if _content(question) in trained]


def _content(question: Question) -> tuple[object, ...]:
    # Data sets repeat a question with another id, case or spacing. Filters count: the small world asks the same text in
    # worlds with different answers.
    return " ".join(question.text.casefold().split()), tuple(sorted(question.filters.items()))
