"""A pytest-xdist scheduler that keeps files which share a release in one process: ``-p tests.cluster.side_by_side``."""

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
"""Releases that several files use; the files in a folder of live/ also share one."""

LONG = ("test_chain", "observed", "replicated", "test_placement", "demo", "test_secured_jobs")
"""The longest groups first, so that both processes end at about the same time.

xdist gives a process its next group when it has two tests left.
"""


def group_of(path: PurePath) -> str:
    """The group of files that must run in the same process as this one."""
    return path.parent.name if path.parent.parent.name == "live" else SHARED.get(path.stem, path.stem)


def rank_of(item: pytest.Item) -> int:
    group = group_of(item.path)
    return LONG.index(group) if group in LONG else len(LONG)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank_of)


class ByRelease(LoadScopeScheduling):
    """Never splits a file, nor a group of files that use one release."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(PurePath(nodeid.partition("::")[0]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByRelease:
    return ByRelease(config, log)
