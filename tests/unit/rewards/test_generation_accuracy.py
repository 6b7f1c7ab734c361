import pytest

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
async def test_then_the_judge_decides(verdict: bool) -> None:
    assert await generation_accuracy("the capital of France", ["Paris"], Judge(verdict)) == Decision(verdict, "judge")


async def test_nobody_is_asked_about_an_empty_answer() -> None:
    judge = Judge(True)
    assert await generation_accuracy(" \n", ["Paris"], judge) == Decision(False, "none")
    assert judge.asked == 0


async def test_without_a_judge_only_spans_count() -> None:
    assert await generation_accuracy("the capital of France", ["Paris"]) == Decision(False, "none")


async def test_a_judge_outage_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(Unavailable):
        await generation_accuracy("x", ["Paris"], Judge(Unavailable("judge is down")))
