"""An answer is correct by span, by option or by the judge, who is asked only if no rule decides."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.errors import Unavailable
from searchrl.rewards.generation_accuracy import Decision, generation_accuracy


class Judge:
    def __init__(self, verdict: bool | Exception) -> None:
        self.verdict = verdict
        self.asked = 0

    async def __call__(self) -> bool:
        self.asked += 1
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


async def test_the_span_test_decides_first_and_the_judge_is_not_asked() -> None:
    judge = Judge(False)
    assert await generation_accuracy("It is Paris.", ["Paris"], judge) == Decision(True, "span")
    assert judge.asked == 0


@pytest.mark.parametrize("verdict", [True, False])
async def test_without_a_rule_the_judge_decides(verdict: bool) -> None:
    assert await generation_accuracy("the capital of France", ["Paris"], Judge(verdict)) == Decision(verdict, "judge")


async def test_an_empty_answer_is_wrong_without_a_judge_call() -> None:
    judge = Judge(True)
    assert await generation_accuracy(" \n", ["Paris"], judge) == Decision(False, "none")
    assert judge.asked == 0


async def test_without_a_judge_only_spans_count() -> None:
    assert await generation_accuracy("the capital of France", ["Paris"]) == Decision(False, "none")


CHOICES = (Choice("A", "cold water"), Choice("C", "ascorbic acid"))


@pytest.mark.parametrize(
    ("answer", "golden", "choices", "decision"),
    [
        ("Yes, there is no doubt that both are.", ["no"], (), Decision(False, "polarity")),
        ("No, both are.", ["no"], (), Decision(True, "polarity")),
        ("True", ["yes"], (), Decision(True, "polarity")),
        ("no", ["no", "false"], (), Decision(True, "polarity")),
        ("Yes", ["yes", "Both are."], (), Decision(True, "span")),
        ("C", ["C", "ascorbic acid"], CHOICES, Decision(True, "choice")),
        ("It is ascorbic acid.", ["C", "ascorbic acid"], CHOICES, Decision(True, "choice")),
        ("A: cold water", ["C", "ascorbic acid"], CHOICES, Decision(False, "choice")),
        ("The answer is C", ["C"], (), Decision(True, "choice")),
        ("(A)", ["A"], (), Decision(True, "span")),
        ("12", ["12"], (), Decision(True, "span")),
        ("<think>Paris or London</think>Paris", ["Paris"], (), Decision(True, "span")),
        ("Beyonce\u0301 it was", ["Beyonc\u00e9"], (), Decision(True, "span")),
    ],
)  # fmt: skip
async def test_an_answer_that_a_rule_decides_is_not_judged(
    answer: str, golden: list[str], choices: tuple[Choice, ...], decision: Decision
) -> None:
    judge = Judge(not decision.correct)
    assert await generation_accuracy(answer, golden, judge, choices) == decision
    assert judge.asked == 0


@pytest.mark.parametrize(
    ("answer", "golden", "choices"),
    [
        ("There is no information in the documents.", ["no"], ()),
        ("Yes and no", ["no"], ()),
        ("no", ["yes", "no"], ()),
        ("Vitamin C deficiency", ["C"], ()),
        ("Vitamin C deficiency", ["C", "ascorbic acid"], CHOICES),
        ("A: ascorbic acid", ["C", "ascorbic acid"], CHOICES),
        ("In 12 documents", ["12"], ()),
        ("It is not Paris", ["Paris"], ()),
        ("The", ["A"], ()),
        ("<think>Paris or London? Ystad.</think>\n\nRome", ["Paris"], ()),
        ("Paris or London? Ystad.</think>\n\nRome", ["Paris"], ()),
    ],
)
@pytest.mark.parametrize("verdict", [True, False])
async def test_an_answer_that_no_rule_decides_is_judged(
    answer: str, golden: list[str], choices: tuple[Choice, ...], verdict: bool
) -> None:
    assert await generation_accuracy(answer, golden, Judge(verdict), choices) == Decision(verdict, "judge")
    assert await generation_accuracy(answer, golden, None, choices) == Decision(False, "none")


@pytest.mark.parametrize("thought", ["<think>Paris</think>", "Paris</think>", "<think>It is Paris"])
async def test_a_thought_alone_is_not_an_answer(thought: str) -> None:
    judge = Judge(True)
    assert await generation_accuracy(thought, ["Paris"], judge) == Decision(False, "none")
    assert judge.asked == 0


@given(st.text(min_size=1).filter(lambda text: strip_thoughts(text) == text))
def test_a_golden_answer_is_right_itself(golden: str) -> None:
    assert asyncio.run(generation_accuracy(golden, [golden])).correct


async def test_a_judge_outage_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(Unavailable):
        await generation_accuracy("x", ["Paris"], Judge(Unavailable("judge is down")))
