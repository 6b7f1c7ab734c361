"""Readiness and liveness: failing parts, dead parts and draining."""

import asyncio
import threading

import pytest

from searchrl.platform.health import Health


@pytest.fixture
def health() -> Health:
    made = Health()
    made.set_ready()
    return made


def test_a_part_that_recovers_does_not_hide_another_one_that_still_fails(health: Health) -> None:
    health.set_failing("judge", "cannot be reached")
    health.set_failing("engine", "restarts")
    health.set_working("engine")
    assert not health.ready
    assert health.reason == "judge: cannot be reached"
    health.set_working("judge")
    assert health.ready
    assert health.reason == "ok"


def test_a_start_does_not_hide_a_failing_part(health: Health) -> None:
    health.set_failing("batcher", "3 failures in a row")
    health.set_ready()
    assert not health.ready


def test_a_dead_part_ends_liveness_and_readiness_for_good(health: Health) -> None:
    health.set_dead("the batcher has broken down")
    health.set_ready()
    assert not health.ready
    assert not health.alive
    assert health.reason == "the batcher has broken down"


def test_not_ready_is_not_dead(health: Health) -> None:
    health.set_not_ready("loading")
    assert health.alive
    assert (health.ready, health.reason) == (False, "loading")


def test_draining_is_for_good(health: Health) -> None:
    health.start_draining()
    health.set_ready()
    assert (health.ready, health.reason) == (False, "draining")


def test_listeners_get_the_state_at_once_and_at_each_change(health: Health) -> None:
    heard: list[bool] = []
    health.subscribe(heard.append)
    health.set_failing("part", "broken")
    health.set_working("part")
    health.set_dead("gone")
    assert heard == [True, False, True, False]


async def test_a_listener_of_the_event_loop_runs_there_whichever_thread_changes_health() -> None:
    health, heard = Health(), []
    health.subscribe_in_loop(lambda ready: heard.append((ready, threading.current_thread())))
    await asyncio.to_thread(health.set_ready)
    await asyncio.sleep(0)
    assert heard == [(False, threading.current_thread()), (True, threading.current_thread())]
