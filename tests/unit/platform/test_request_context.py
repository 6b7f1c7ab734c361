"""Deadlines nest, and each task keeps its own request id."""

import asyncio

from searchrl.platform.request_context import deadline, remaining_seconds, request, request_id, tighten_deadline


def test_an_inner_deadline_never_extends_the_outer_one() -> None:
    assert remaining_seconds() is None
    with deadline(5):
        with deadline(100):
            assert 4 < (remaining_seconds() or 0) <= 5
        with deadline(1):
            assert 0 < (remaining_seconds() or 0) <= 1
        with deadline(None):
            assert 4 < (remaining_seconds() or 0) <= 5
    assert remaining_seconds() is None


def test_a_passed_deadline_leaves_zero_seconds() -> None:
    with deadline(-1):
        assert remaining_seconds() == 0
        assert tighten_deadline(3) == 0
    assert tighten_deadline(3) == 3
    assert tighten_deadline(None) is None


async def test_concurrent_tasks_keep_their_own_request() -> None:
    both_inside = asyncio.Barrier(2)

    async def serve(id: str) -> str:
        with request(id, None):
            await both_inside.wait()
            return request_id()

    assert await asyncio.gather(serve("a"), serve("b")) == ["a", "b"]
    assert request_id() == ""


def test_a_request_without_an_id_gets_one() -> None:
    with request(None, None) as first, request(None, None) as second:
        assert first and second and first != second
