"""Sends steady traffic to a release while a test changes it, and requires that every request was answered rightly.

The requests come from load/steady_load.py, which runs in a pod; this module reads its printed totals.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.live.client_pod import client_pod, release_labels
from tests.cluster.live.conftest import Release
from tests.cluster.live.releases import await_that

POD = "load"
FIRST_TEST_WORLD = "w001"  # as releases.REPLICATED has it, after one training world
SCRIPTS = Path(__file__).parent / "load"
# Requests per second of each kind. A higher rate finds shorter outages, but saturates a node of few processors.
RATES = {"answers": 1.0, "searches": 6.0, "posts": 2.0, "kept": 6.0}


@dataclass(frozen=True, slots=True)
class Totals:
    """Requests so far, by kind."""

    started: Mapping[str, int]
    done: Mapping[str, int]
    failed: int
    failures: list[str]
    retries: int
    retried: list[str]
    slowest: float


class SteadyTraffic:
    """A continuous stream of questions and searches."""

    def __init__(self, release: Release) -> None:
        self._release = release

    def totals(self) -> Totals:
        """The pod's totals, at most a second old."""
        return Totals(**json.loads(self._release.kubectl("logs", POD, "--tail=1")))

    @contextmanager
    def unharmed(self, what: str) -> Iterator[None]:
        """Require a right answer to every request under way before, during or at the end of the block."""
        before = self.totals()
        yield
        end = self.totals()
        after = await_that(lambda: self._settled(end), 90, f"an end of all requests started during {what}")
        answered = {kind: after.done[kind] - before.done.get(kind, 0) for kind in RATES}
        retries, slowest = after.retries - before.retries, after.slowest
        sys.stdout.write(f"{what}: answered {answered}, slowest so far {slowest} s, tried again {retries}: ")
        sys.stdout.write(f"{after.retried[-retries:] if retries else 'none'}\n")
        assert after.failed == before.failed, f"{after.failed - before.failed} of {answered}: {after.failures}"
        assert min(answered.values()) > 0, answered

    def _settled(self, end: Totals) -> Totals | None:
        now = self.totals()
        return now if all(now.done.get(kind, 0) >= count for kind, count in end.started.items()) else None


@contextmanager
def steady_traffic(release: Release, rates: Mapping[str, float] = RATES) -> Iterator[SteadyTraffic]:
    """Traffic from a pod that the release's policies admit; on entry each kind has been answered at least once."""
    env = {"RELEASE": release.name, "RATES": json.dumps(rates), "FILTERS": json.dumps({"world": FIRST_TEST_WORLD})}
    command = ("python", "/scripts/steady_load.py")
    labels = release_labels(release, "job-load")
    with client_pod(release, POD, labels=labels, command=command, scripts=SCRIPTS, env=env):
        traffic = SteadyTraffic(release)
        await_that(lambda: _flows(release, rates), 60, "traffic of every kind")
        yield traffic


def _flows(release: Release, rates: Mapping[str, float]) -> bool:
    last = release.kubectl("logs", POD, "--tail=1").strip()
    return bool(last) and rates.keys() <= json.loads(last)["done"].keys()
