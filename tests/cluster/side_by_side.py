"""Two processes test a cluster side by side; what shares a release stays in one: ``-p tests.cluster.side_by_side``."""

from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

SHARED = {"test_release_edges": "replicated", "test_under_load": "replicated"}
"""Releases that several files use; those in a folder of live/ share one, too."""


class ByRelease(LoadScopeScheduling):
    """Never splits a file, nor files that use one release."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        return file.parent.name if file.parent.parent.name == "live" else SHARED.get(file.stem, str(file))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByRelease:
    return ByRelease(config, log)
