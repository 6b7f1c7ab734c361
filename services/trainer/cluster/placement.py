"""Reserves the places of all Ray actors of a run at once, so that a cluster that is too small refuses it at the start.

The actors are the learner's ranks and the vLLM servers. Their places are the bundles of one placement group: a part of
a run never holds GPUs while the rest waits for more.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from searchrl.errors import ConfigurationError, Unavailable

PLACE_SECONDS = 300.0
"""How long nodes may take to join a cluster, or other work to leave it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What one actor needs of a node.

    Attributes:
        holder: what the actor is, in the singular.
    """

    holder: str
    cpus: int
    gpus: int = 0

    @property
    def resources(self) -> dict[str, float]:
        """The bundle, as Ray describes it."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


class RunPlacement:
    """The places of a run, which its learner and its engine share; Ray is joined when the first of them reserves them.

    Args:
        ranks: of the learner's ranks.
        servers: of the vLLM servers.
    """

    def __init__(self, ranks: Sequence[Place] = (), servers: Sequence[Place] = ()) -> None:
        self._places = (*ranks, *servers)
        self._first_server = len(ranks)
        self._group: Any = None
        self._users = 0
        self._lock = threading.Lock()  # the learner's thread and one of the engine may reserve at the same time

    def reserve(self) -> None:
        """Join the cluster and reserve all places, unless the other user has done so.

        Raises:
            ConfigurationError: this machine is too small.
            Unavailable: there is no such cluster, or it does not have the places in time.
        """
        with self._lock:
            if self._group is None:
                join_cluster()
                self._group = _reserve(self._places)
            self._users += 1

    def release(self) -> None:
        """Leave the cluster, if the other user does not need it any more."""
        import ray

        with self._lock:
            self._users -= 1
            if not self._users:
                self._group = None  # Ray removes it with the session
                ray.shutdown()

    def rank(self, number: int) -> dict[str, Any]:
        """Return the options of the actor of a rank."""
        return self._options(number)

    def server(self, number: int) -> dict[str, Any]:
        """Return the options of the actor of a vLLM server."""
        return self._options(self._first_server + number)

    def _options(self, index: int) -> dict[str, Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = self._places[index]
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        return {"num_cpus": place.cpus, "num_gpus": place.gpus, "scheduling_strategy": strategy}


def _reserve(places: Sequence[Place]) -> Any:
    import ray
    from ray.util import placement_group, remove_placement_group

    def shortage() -> str:
        return find_shortage(places, [node["Resources"] for node in ray.nodes() if node["Alive"]])

    # Nodes may join a cluster later; this machine does not grow.
    if not os.environ.get("RAY_ADDRESS") and (found := shortage()):
        raise ConfigurationError(found)
    # Over as many nodes as there are, as far as the bundles fit.
    group = placement_group([place.resources for place in places], strategy="SPREAD")
    if not group.wait(PLACE_SECONDS):
        found = shortage() or f"the Ray cluster did not free {describe_places(places)} within {PLACE_SECONDS:.0f} s"
        remove_placement_group(group)
        raise Unavailable(found, retry_after_seconds=None)
    return group


def find_shortage(places: Sequence[Place], nodes: Sequence[Mapping[str, float]]) -> str:
    """Say in a sentence what nodes with these resources lack, whatever uses them now; empty if they lack nothing."""
    needed = {kind: sum(place.resources.get(kind, 0) for place in places) for kind in ("GPU", "CPU")}
    there = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in needed}
    missing = [count_text(needed[kind] - there[kind], kind) for kind in needed if needed[kind] > there[kind]]
    if missing:
        return (
            f"the Ray cluster lacks {' and '.join(missing)}: it has {count_text(there['GPU'], 'GPU')} and "
            f"{count_text(there['CPU'], 'CPU')}, and this run needs {describe_places(places)}"
        )
    for place in places:
        if not any(all(node.get(kind, 0.0) >= size for kind, size in place.resources.items()) for node in nodes):
            return f"no node of the Ray cluster has the {describe_resources(place)} of one {place.holder}"
    return ""


def describe_places(places: Sequence[Place]) -> str:
    """Name the actors and what each needs."""
    counts = {place: places.count(place) for place in places}
    return " and ".join(
        f"{count} {place.holder}{'s' if count > 1 else ''} of {describe_resources(place)}{' each' if count > 1 else ''}"
        for place, count in counts.items()
    )


def describe_resources(place: Place) -> str:
    """Name what a place has."""
    return " and ".join(count_text(size, kind) for kind, size in reversed(place.resources.items()))


def count_text(count: float, what: str) -> str:
    """A number of things, such as "1 GPU"."""
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def join_cluster() -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start one on this machine; does nothing within a session.

    Ray takes over SIGTERM: its handler ends the process three seconds later, even while a checkpoint is saved. So call
    this before the process sets its own handlers.

    Raises:
        Unavailable: there is no such cluster, or Ray did not start.
    """
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # a plain one if a node takes over 30 s to start, as on a busy machine
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise Unavailable(f"cannot use the Ray cluster at {address}: {error}", retry_after_seconds=None) from error
