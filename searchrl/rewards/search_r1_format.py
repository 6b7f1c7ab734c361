"""Computes the rewards of Search-R1: exact match, alone or with a score of the format."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from searchrl.domain.question import Choice
from searchrl.domain.trajectory import Trajectory, Turn
from searchrl.rewards.answer_normalization import normalize_answer
from searchrl.rewards.answers import exact_match

_TAG = re.compile(r"</?(think|search|information|answer)>")
# start -> think -> search -> information
#            ^  \                |
#            |   -> answer       |
#            +-------------------+
_NEXT_TAGS = {
    "start": frozenset({"think"}),
    "think": frozenset({"search", "answer"}),
    "search": frozenset({"information"}),
    "information": frozenset({"think"}),
    "answer": frozenset[str](),
}


@dataclass(frozen=True, slots=True)
class FormatReward:
    """The reward table of Search-R1's format variant; the default values are those of its training scripts.

    | answer exact | format valid | otherwise | reward |
    |---|---|---|---|
    | yes | yes | | 1 |
    | yes | no | | 1 - ``structure`` |
    | no | yes | a golden answer was retrieved | ``structure`` + ``retrieval`` |
    | no | yes | | ``structure`` |
    | no | no | there is an answer | ``final`` |
    | no | no | there is none | 0 |
    """

    structure: float = 0.2
    final: float = 0.1
    retrieval: float = 0.0

    def value(self, is_exact: bool, is_valid: bool, was_retrieved: bool, has_answer: bool) -> float:
        """Return the reward of one row of the table."""
        if is_exact:
            return 1.0 if is_valid else 1.0 - self.structure
        if is_valid:
            return self.structure + (self.retrieval if was_retrieved else 0.0)
        return self.final if has_answer else 0.0

    def score(self, trajectory: Trajectory, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
        """Score the text that the policy itself wrote; an answer in a document or in the prompt never counts."""
        answer = trajectory.answer
        return self.value(
            is_exact=answer is not None and exact_match(answer, golden_answers, choices),
            is_valid=has_valid_turns(trajectory.turns),
            was_retrieved=was_retrieved(
                (result.passage.contents for block in trajectory.blocks for result in block.results), golden_answers
            ),
            has_answer=answer is not None,
        )


def exact_match_reward(trajectory: Trajectory, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """Return 1.0 if the policy's own answer is an exact match, else 0.0."""
    return float(trajectory.answer is not None and exact_match(trajectory.answer, golden_answers, choices))


def has_valid_turns(turns: Sequence[Turn]) -> bool:
    """Return whether the sampled turns, with an information block after each search, are a valid response.

    An information block that the policy wrote itself makes them invalid. A thought without its opening tag counts as
    opened, as in the protocol's parser: the chat templates of reasoning models write that tag into the prompt.
    """
    # Matches the opening and the closing tag.
    if any("information>" in turn.text for turn in turns):
        return False
    # The environment's blocks are put in empty: their texts are not the policy's, so they are not checked.
    observed = ("<information></information>" if turn.action == "search" and turn.queries else "" for turn in turns)
    texts = (_with_opened_thought(turn.text) for turn in turns)
    return is_valid_response("".join(text + info for text, info in zip(texts, observed, strict=True)))


def _with_opened_thought(text: str) -> str:
    before, closing, _ = text.partition("</think>")
    return f"<think>{text}" if closing and before.strip() and "<think>" not in before else text


def is_valid_response(text: str) -> bool:
    """Return whether the text is think (search information think)* answer, with only white space between the parts."""
    state, opened, position = "start", None, 0
    # Inside an open tag the only tag allowed is its own closing one; outside, only white space may stand between tags.
    for match in _TAG.finditer(text):
        tag = match[1]
        between = text[position : match.start()]
        position = match.end()
        if opened is not None:
            if match[0] != f"</{opened}>":
                return False
            state, opened = opened, None
        elif between.strip() or match[0] != f"<{tag}>" or tag not in _NEXT_TAGS[state]:
            return False
        else:
            opened = tag
    return opened is None and state == "answer" and not text[position:].strip()


def was_retrieved(texts: Iterable[str], golden_answers: Sequence[str]) -> bool:
    """Return whether a normalized golden answer is part of a normalized text; empty golden answers never are."""
    golden = [normalized for normalized in map(normalize_answer, golden_answers) if normalized]
    return any(answer in text for text in map(normalize_answer, texts) for answer in golden)
