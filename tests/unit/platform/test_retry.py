"""A retry happens only where it can help, and only within the deadline."""

from typing import Any

import pytest

from searchrl.errors import (
    OUTAGE_KINDS,
    DeadlineExceeded,
    ErrorKind,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    Unavailable,
)
from searchrl.platform.request_context import deadline
from searchrl.platform.retry import RetryPolicy, retry_every


class Service:
    """A call that raises the given errors one by one, then returns "ok"; also a clock that records the waits."""

    def __init__(self, *errors: ServiceError) -> None:
        self._errors = list(errors)
        self.calls = 0
        self.waits: list[float] = []

    async def __call__(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "ok"

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def policy(self, **settings: Any) -> RetryPolicy:
        return RetryPolicy(sleep=self.sleep, uniform=lambda low, high: high, **settings)


async def test_an_unavailable_service_is_asked_again_with_growing_waits() -> None:
    service = Service(*[Unavailable("gone", None) for _ in range(3)])
    assert await service.policy(first_seconds=0.1, max_seconds=0.3).run(service) == "ok"
    assert service.waits == [0.1, 0.2, 0.3]  # doubled, then capped


async def test_an_overloaded_service_is_not_called_before_its_retry_after() -> None:
    service = Service(Overloaded("full", 2.0))
    await service.policy(first_seconds=0.1).run(service)
    assert service.waits == [pytest.approx(0.1 + 2.0 * 1.5)]  # the jitter is at its upper end here


async def test_a_call_with_equal_pauses_is_repeated_through_any_outage_and_not_after_a_refusal() -> None:
    outages = [Unavailable("gone", 60.0), Overloaded("full", 60.0), DeadlineExceeded("slow"), ServiceError("bug")]
    service = Service(*outages, *outages, NotFound("x"))
    with pytest.raises(NotFound):
        await retry_every(2.0, service.sleep).run(service)
    assert service.waits == [2.0] * 8  # neither doubled nor as long as the server asks: the clients waited that long


@pytest.mark.parametrize("error", [InvalidRequest("x"), NotFound("x"), DeadlineExceeded("x"), ServiceError("x")])
async def test_other_failures_are_final(error: ServiceError) -> None:
    service = Service(error)
    with pytest.raises(type(error)):
        await service.policy().run(service)
    assert service.calls == 1


@pytest.mark.parametrize("error", [Unavailable("x"), Overloaded("x"), DeadlineExceeded("x"), ServiceError("x")])
async def test_any_outage_is_tried_again_where_the_work_is_worth_it(error: ServiceError) -> None:
    service = Service(error)
    assert await service.policy(kinds=OUTAGE_KINDS).run(service) == "ok"
    assert service.calls == 2


async def test_a_permanent_failure_is_final_for_every_policy() -> None:
    service = Service(InvalidRequest("x"))
    with pytest.raises(InvalidRequest):
        await service.policy(kinds=OUTAGE_KINDS).run(service)
    with pytest.raises(ValueError, match="not_found"):
        RetryPolicy(kinds=frozenset({ErrorKind.NOT_FOUND}))


async def test_the_last_failure_is_raised_when_attempts_run_out() -> None:
    service = Service(*[Unavailable(f"try {number}", None) for number in (1, 2, 3)])
    with pytest.raises(Unavailable, match="try 3"):
        await service.policy(attempts=3).run(service)
    assert service.calls == 3


async def test_a_wait_beyond_the_deadline_is_not_started() -> None:
    service = Service(Overloaded("full", 60.0))
    with deadline(5.0), pytest.raises(Overloaded, match="full"):
        await service.policy().run(service)
    assert service.waits == []


def test_waits_are_randomized() -> None:
    policy = RetryPolicy(first_seconds=1.0)
    pauses = {policy.pause_after(Unavailable("gone", None), 1) for _ in range(20)}
    assert len(pauses) > 1
    assert all(pause is not None and 0.5 <= pause <= 1.0 for pause in pauses)


def test_the_longest_pause_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(first_seconds=1.0, max_seconds=60.0)
    assert [policy.longest_pause(attempt) for attempt in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert policy.longest_pause(5_000) == 60  # a float has no 2 to the 4,999th
