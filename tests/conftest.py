"""What holds for every test: property tests are never judged by the clock, and nobody inherits a log handler."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """A program's ``main`` sends the log to stderr, which for a later test is a closed file."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
