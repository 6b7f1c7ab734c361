"""What holds for every test: property tests are never judged by the clock, and nobody inherits a log handler.

Several workers start with the files that take longest, so that none is idle while another runs a long one at the end.
"""

import logging
from collections import Counter
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files by their number of slow tests, in a worker of xdist, which runs files in the order of this list.

    ``scripts/run_tests.sh`` turns off xdist's own order, by number of tests: the slowest files have few.
    """
    if not hasattr(config, "workerinput"):
        return
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # stable: the order within a file stays
