"""Creates, suspends and deletes the engines of training runs in a namespace."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from searchrl.errors import Conflict, NotFound
from searchrl.jobs.api_errors import translate_errors
from searchrl.jobs.pod_spec import COMPONENT_LABEL, INSTANCE_LABEL, RUN_LABEL

Manifest = Mapping[str, Any]


class ClusterEngines:
    """The Service, the NetworkPolicy and the Job of each run's engines; all three have the same name.

    Args:
        batch, core, network: the three parts of the API that know these kinds.
    """

    def __init__(self, batch: Any, core: Any, network: Any, namespace: str) -> None:
        self._batch = batch
        self._core = core
        self._network = network
        self._namespace = namespace

    def create(self, owner: Manifest, manifests: Sequence[Manifest]) -> None:
        """Create the objects, which Kubernetes deletes with their owner.

        What an earlier job of the same run has left is replaced: that job has ended, or this one would not exist.

        Raises:
            Conflict: the name belongs to another run.
            ServiceError: the API server refuses.
        """
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
        for manifest in manifests:
            metadata = {**manifest["metadata"], "ownerReferences": [reference]}
            create = self._calls("create")[manifest["kind"]]
            owned = {**manifest, "metadata": metadata}
            try:
                with translate_errors():
                    create(self._namespace, owned)
            except Conflict:
                self._remove_leftover(manifest)
                with translate_errors():
                    create(self._namespace, owned)

    def suspend(self, name: str, suspend: bool) -> None:
        """End the pods until they are resumed; their GPUs are free meanwhile."""
        with contextlib.suppress(NotFound), translate_errors():
            self._batch.patch_namespaced_job(name, self._namespace, {"spec": {"suspend": suspend}})

    def have_ended(self, name: str) -> bool:
        """Return whether the engines will not start again: the run was over, or had no trainer for long."""
        try:
            with translate_errors():
                status = self._batch.read_namespaced_job(name, self._namespace).status
        except NotFound:
            return True
        return any(
            condition.type in ("Complete", "Failed") and condition.status == "True"
            for condition in status.conditions or []
        )

    def delete(self, name: str) -> None:
        """Delete all objects of this name, and the pods."""
        for delete in self._calls("delete").values():
            with contextlib.suppress(NotFound), translate_errors():
                delete(name, self._namespace, propagation_policy="Background")

    def _remove_leftover(self, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        with translate_errors():
            found = self._calls("read")[kind](name, self._namespace).metadata.labels or {}
        labels = manifest["metadata"]["labels"]
        if any(found.get(label) != labels[label] for label in (RUN_LABEL, INSTANCE_LABEL, COMPONENT_LABEL)):
            raise Conflict(f"{kind} {name} belongs to something else: choose another --run-id")
        with contextlib.suppress(NotFound), translate_errors():
            self._calls("delete")[kind](name, self._namespace, propagation_policy="Background")

    def _calls(self, verb: str) -> dict[str, Callable[..., Any]]:
        """Return the calls of the API by kind; the Job is last, so that its pods find the other two."""
        return {
            "Service": getattr(self._core, f"{verb}_namespaced_service"),
            "NetworkPolicy": getattr(self._network, f"{verb}_namespaced_network_policy"),
            "Job": getattr(self._batch, f"{verb}_namespaced_job"),
        }
