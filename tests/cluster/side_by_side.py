"""Two processes test a cluster side by side; what shares a release stays in one: ``-p tests.cluster.side_by_side``."""

from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

SHARED = {
    "test_release_edges": "replicated",
    "test_under_load": "replicated",
    "test_release": "demo",
    "test_backup_restore": "demo",
}
"""Releases that several files use; those in a folder of live/ share one, too."""

LONG = ("test_chain", "observed", "replicated", "test_placement", "demo", "test_secured_jobs")
"""The longest first, so that both processes end at about the same time; one with two tests left takes the next."""


def group_of(path: PurePath) -> str:
    """What a file must stay together with."""
    return path.parent.name if path.parent.parent.name == "live" else SHARED.get(path.stem, path.stem)


def rank_of(item: pytest.Item) -> int:
    group = group_of(item.path)
    return LONG.index(group) if group in LONG else len(LONG)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank_of)


class ByRelease(LoadScopeScheduling):
    """Never splits a file, nor files that use one release."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(PurePath(nodeid.partition("::")[0]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByRelease:
    return ByRelease(config, log)
