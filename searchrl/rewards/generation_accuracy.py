"""Is the generator's answer right? First the span test, then a judge."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from searchrl.rewards.span_match import contains_answer

DecidedBy = Literal["span", "judge", "none"]


@dataclass(frozen=True, slots=True)
class Decision:
    """``decided_by`` is "none" where the span test failed and there was nothing, or nobody, to ask."""

    correct: bool
    decided_by: DecidedBy


async def generation_accuracy(
    answer: str, golden_answers: Sequence[str], ask_judge: Callable[[], Awaitable[bool]] | None = None
) -> Decision:
    """Decide whether a golden answer is contained in the answer.

    | answer | decided by | correct |
    |---|---|---|
    | contains a golden answer as a span | span; the judge is not asked | yes |
    | blank | none; an empty answer needs no judge | no |
    | anything else, with a judge | judge | as the judge says |
    | anything else, without a judge | none | no |

    Raises:
        searchrl.errors.ServiceError: the judge failed; an outage is never a wrong answer.
    """
    if contains_answer(answer, golden_answers):
        return Decision(True, "span")
    if ask_judge is None or not answer.strip():
        return Decision(False, "none")
    return Decision(await ask_judge(), "judge")
