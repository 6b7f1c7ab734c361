"""Decides whether the generator's answer is right: by rules where they are safe, else by a judge."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.answers import exact_match, find_choice, find_letter, is_golden_choice
from searchrl.rewards.polarity import polarity_of, polarity_of_golden
from searchrl.rewards.span_match import states_answer

DecidedBy = Literal["span", "choice", "polarity", "judge", "none"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an answer is right, and what decided it.

    ``decided_by`` is "none" if the answer is empty, or if no rule applied and there is no judge.
    """

    correct: bool
    decided_by: DecidedBy


async def generation_accuracy(
    answer: str,
    golden_answers: Sequence[str],
    ask_judge: Callable[[], Awaitable[bool]] | None = None,
    choices: Sequence[Choice] = (),
) -> Decision:
    """Decide whether the answer is right, ignoring its thoughts. The first row that applies counts:

    | the answer | decided by | correct |
    |---|---|---|
    | is blank, or only a thought | none; an empty answer needs no judge | no |
    | picks an option of a multiple-choice question by label or text | choice | if the option is golden |
    | begins with yes or no, and all golden answers are yes, no, true or false | polarity | if they say the same |
    | equals a golden answer, or contains one for which a span is proof (``states_answer``) | span | yes |
    | anything else, with a judge | judge | as the judge says |
    | anything else, without a judge | none | no |

    Raises:
        searchrl.errors.ServiceError: the judge failed; an outage is never a wrong answer.
    """
    answer = strip_thoughts(answer)
    if not answer:
        return Decision(False, "none")
    decision = decide_by_rules(answer, golden_answers, choices)
    if decision is not None:
        return decision
    if ask_judge is None:
        return Decision(False, "none")
    return Decision(await ask_judge(), "judge")


def decide_by_rules(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> Decision | None:
    """Return the decision of the rules on an answer without thoughts; None if they leave it open."""
    # With options only the picked one decides: an answer may quote the golden text while it rejects it.
    if choices:
        chosen = find_choice(answer, choices)
        return Decision(is_golden_choice(chosen, golden_answers, choices), "choice") if chosen else None
    # Golden answers that say both yes and no decide nothing, and neither does an empty list.
    polarities = {polarity_of_golden(golden) for golden in golden_answers}
    if None not in polarities:
        said = polarity_of(answer)
        return Decision(said in polarities, "polarity") if said is not None and len(polarities) == 1 else None
    if exact_match(answer, golden_answers) or states_answer(answer, golden_answers):
        return Decision(True, "span")
    letters = [golden.strip() for golden in golden_answers if _is_letter(golden)]
    if letters and (letter := find_letter(answer)) is not None and letter in letters:
        return Decision(True, "choice")
    return None


def _is_letter(golden: str) -> bool:
    """Return whether the golden answer is the label of an option that is not known here.

    A letter that differs from it does not make an answer wrong: the judge decides.
    """
    golden = golden.strip()
    return len(golden) == 1 and golden.isupper()
