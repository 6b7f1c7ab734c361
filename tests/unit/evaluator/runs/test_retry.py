"""Are only passing failures tried again, and waited for long enough?"""

import pytest

from searchrl.errors import InvalidRequest, Overloaded, ServiceError, Unavailable
from services.evaluator.runs.retry import Backoff


class Failing:
    def __init__(self, *errors: ServiceError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def recording(waits: list[float]) -> Backoff:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return Backoff(attempts=4, first_seconds=1.0, largest_seconds=3.0, sleep=sleep)


async def test_waits_grow_to_the_largest_and_success_ends_them() -> None:
    waits: list[float] = []
    failing = Failing(Unavailable("a", None), Unavailable("b", None), Unavailable("c", None))
    assert await recording(waits).call(failing) == "done"
    assert failing.calls == 4
    assert all(low <= wait <= high for wait, (low, high) in zip(waits, [(0.5, 1), (1, 2), (1.5, 3)], strict=True))


async def test_the_last_failure_is_raised() -> None:
    failing = Failing(*[Unavailable(name) for name in "abcd"])
    with pytest.raises(Unavailable, match="d"):
        await recording([]).call(failing)


async def test_a_lasting_failure_is_not_repeated() -> None:
    failing = Failing(InvalidRequest("never"))
    with pytest.raises(InvalidRequest):
        await recording([]).call(failing)
    assert failing.calls == 1


async def test_retry_after_is_the_least_that_is_waited() -> None:
    waits: list[float] = []
    await recording(waits).call(Failing(Overloaded("busy", retry_after_seconds=7.0)))
    assert waits == [7.0]
