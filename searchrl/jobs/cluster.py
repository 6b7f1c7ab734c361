"""Creates, finds, follows and stops jobs in a cluster, with the permissions of the user's kubeconfig."""

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from searchrl.errors import ConfigurationError, Conflict, NotFound, ServiceError
from searchrl.jobs.api_errors import translate_errors
from searchrl.jobs.cluster_engines import ClusterEngines
from searchrl.jobs.pod_spec import COMPONENT_LABEL, RUN_LABEL, STEP_LABEL
from searchrl.jobs.rollout_engines import COMPONENT
from searchrl.jobs.run_view import DELETING, RunView, view_of

SEARCHRL_SELECTOR = "app.kubernetes.io/name=searchrl"
RAY_GROUP, RAY_VERSION, RAY_PLURAL = "ray.io", "v1", "rayjobs"
POLL_SECONDS = 2.0
"""Pause between looks for new pods. A pod takes seconds to start; a shorter pause only loads the API server."""
CREATE_ATTEMPTS = 3
"""The second one finds the job that another caller has created meanwhile; the third is for a name taken by chance."""
NAME_SUFFIX, NAME_PREFIX = 5, 58
"""Characters of a generated name, as the API server cuts them: a name of 63 can be a label's value."""


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, api: Any, namespace: str) -> None:
        from kubernetes import client

        self.namespace = namespace
        self._api = api
        self._batch: Any = client.BatchV1Api(api)
        self._core: Any = client.CoreV1Api(api)
        self._custom: Any = client.CustomObjectsApi(api)
        self._network: Any = client.NetworkingV1Api(api)

    @classmethod
    def connect(cls, context: str = "", namespace: str = "") -> "Cluster":
        """Connect by the kubeconfig or, inside a cluster, by the pod's service account.

        Raises:
            ConfigurationError: no cluster is configured, or the Kubernetes client is not installed.
        """
        try:
            from kubernetes import client, config
            from kubernetes.config.config_exception import ConfigException
        except ImportError as error:
            raise ConfigurationError(
                "the Kubernetes client is not installed: pip install 'searchrl[submit]', or use --dry-run and kubectl"
            ) from error
        try:
            file = os.environ.get("KUBECONFIG") or None
            api = config.new_client_from_config(file, context=context or None)
            # The namespace of the context, as kubectl chooses it; the client itself ignores it.
            known: Any = config.list_kube_config_contexts(file)
            chosen = next((entry for entry in known[0] if entry["name"] == context), known[1])
            return cls(api, namespace or chosen["context"].get("namespace") or "default")
        except ConfigException as error:
            if context:
                raise ConfigurationError(f"--context {context}: {error}") from error
        try:
            config.load_incluster_config()
        except ConfigException as error:
            raise ConfigurationError(
                "no cluster is configured: set KUBECONFIG or --context, or print the manifest with --dry-run"
            ) from error
        return cls(client.ApiClient(), namespace or "default")

    def create(self, manifest: Mapping[str, Any], engines: Sequence[Mapping[str, Any]] = ()) -> tuple[RunView, bool]:
        """Create the job and the objects of its engines, unless one of the same run and step is unfinished.

        Returns:
            The job, and whether this call has created it.

        Raises:
            Conflict: one of the same run and step is being deleted.
            ServiceError: the API server refuses.
            ConfigurationError: the cluster does not know the kind.
        """
        labels = manifest["metadata"]["labels"]
        for attempt in range(CREATE_ATTEMPTS):
            # By run and step: evaluating a run while it is trained is no conflict.
            known = self.runs(labels[RUN_LABEL], labels[STEP_LABEL])
            under_way = [run for run in known if not run.is_over]
            dying = next((run for run in under_way if run.state == DELETING), None)
            if dying is not None:
                raise Conflict(f"{dying.kind} {dying.name} is being deleted; submit again when its pods have ended")
            if under_way:
                return under_way[0], False
            with contextlib.suppress(Conflict):  # the name is taken, most likely by another caller: look again
                created = self._create(_with_name(manifest, known, attempt))
                break
        else:
            raise Conflict(
                f"{manifest['kind']} {manifest['metadata']['generateName']}*: its name is taken; submit again"
            )
        run = view_of(created)
        if engines:
            try:
                # Afterwards, because they name their owner by the id that it has now; the trainer waits for them.
                self._engines.create({**created, "apiVersion": manifest["apiVersion"]}, engines)
            except ServiceError:
                self._delete_job(run)  # and with it those of its engines that exist already
                raise
        return run, True

    def _create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        with translate_errors():
            if manifest["kind"] == "RayJob":
                self._require_ray()
                return self._custom.create_namespaced_custom_object(
                    RAY_GROUP, RAY_VERSION, self.namespace, RAY_PLURAL, manifest
                )
            return self._plain(self._batch.create_namespaced_job(self.namespace, manifest), "Job")

    @property
    def _engines(self) -> ClusterEngines:
        return ClusterEngines(self._batch, self._core, self._network, self.namespace)

    def runs(self, run_id: str = "", step: str = "") -> list[RunView]:
        """Return this project's jobs, newest first."""
        selector = ",".join(
            [
                SEARCHRL_SELECTOR,
                *([f"{RUN_LABEL}={run_id}"] if run_id else [RUN_LABEL]),
                *([f"{STEP_LABEL}={step}"] if step else []),
            ]
        )
        with translate_errors():
            found = self._batch.list_namespaced_job(self.namespace, label_selector=selector).items
            # Items of a list have no ``kind``, so it is added.
            jobs = [self._plain(job, "Job") for job in found]
            jobs = [job for job in jobs if not _is_part_of_another(job)]
            # 404 means that KubeRay is not installed, so there are no RayJobs. The translation is the inner one: it
            # turns the status into the NotFound that is suppressed.
            with contextlib.suppress(NotFound), translate_errors():
                answer = self._custom.list_namespaced_custom_object(
                    RAY_GROUP, RAY_VERSION, self.namespace, RAY_PLURAL, label_selector=selector
                )
                jobs += answer["items"]
        return sorted(map(view_of, jobs), key=lambda run: run.created, reverse=True)

    def newest(self, run_id: str, step: str = "") -> RunView:
        """Return the newest job of a run.

        Raises:
            NotFound: the run has no job.
        """
        found = self.runs(run_id, step)
        if not found:
            raise NotFound(f"no job of run {run_id} in namespace {self.namespace}; see 'searchrl runs list'")
        return found[0]

    def refresh(self, run: RunView) -> RunView | None:
        """Return the job as it is now; None if it was deleted."""
        return next((found for found in self.runs(run.run_id, run.step) if found.name == run.name), None)

    def pods(self, run: RunView) -> list[dict[str, Any]]:
        """Return the pods of a job, oldest first."""
        # Run and step alone would also match pods of earlier jobs. The job controller adds its label to its pods; the
        # Job that submits a RayJob to its cluster has the RayJob's name.
        selectors = [f"batch.kubernetes.io/job-name={run.name}"]
        if run.ray_cluster:
            selectors.append(f"ray.io/cluster={run.ray_cluster}")
        if run.engines:
            selectors.append(f"batch.kubernetes.io/job-name={run.engines}")
        with translate_errors():
            items = [
                item
                for selector in selectors
                for item in self._core.list_namespaced_pod(self.namespace, label_selector=selector).items
            ]
        return sorted(map(self._to_dict, items), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def events(self, run: RunView) -> list[str]:
        """Return the messages of the events of the job, and of the Job of its engines."""
        objects = [(run.name, run.kind), *([(run.engines, "Job")] if run.engines else [])]
        with translate_errors():
            found = [
                event
                for name, kind in objects
                for event in self._core.list_namespaced_event(
                    self.namespace, field_selector=f"involvedObject.name={name},involvedObject.kind={kind}"
                ).items
            ]
        return [f"{event.reason}: {event.message}" for event in found]

    def follow(
        self, run: RunView, *, follow: bool = True, engine: int | None = None, tail: int | None = None
    ) -> Iterator[str]:
        """Yield the lines of the log, pod after pod, until the job is finished or deleted.

        Args:
            engine: number of the engine whose log it is; None: the job's own.
            tail: only so many of the last lines of each pod; None: all.
        """
        seen: set[LogSource] = set()
        while True:
            # The state is read before the pods: a finished job starts no more pods, so the last round sees all of them.
            found = self.refresh(run)
            run = found or run
            sources = (_log_source(pod, engine) for pod in self.pods(run))
            fresh = [source for source in sources if source and source not in seen]
            for source in fresh:
                seen.add(source)
                yield from self._pod_log(source.pod, source.container, follow, tail)
            if found is None or run.is_over or not follow:
                return
            if not fresh:
                time.sleep(POLL_SECONDS)

    def stop(self, run: RunView) -> str:
        """Suspend a job: its pods save and end. A job of a queue is deleted, because Kueue controls its suspension."""
        if run.queue:
            self.delete(run)
            return "deleted"
        self._suspend(run, True)
        if run.engines:
            self._engines.suspend(run.engines, True)
        return "stopped"

    def resume(self, run: RunView) -> None:
        """Resume a stopped job.

        Raises:
            Conflict: its engines have ended, so that it would wait for them in vain.
        """
        if run.engines:
            if self._engines.have_ended(run.engines):
                raise Conflict(
                    f"the engines of {run.name} have ended: 'searchrl runs stop {run.run_id} --delete', and submit the "
                    "run again to continue"
                )
            self._engines.suspend(run.engines, False)
        self._suspend(run, False)

    def delete(self, run: RunView) -> None:
        """Delete a job, its pods and its engines; its files on the storage stay."""
        self._delete_job(run)
        if run.engines:
            # With an owner they follow by themselves; without, kubectl has created them.
            self._engines.delete(run.engines)

    def _delete_job(self, run: RunView) -> None:
        with translate_errors():
            if run.kind == "RayJob":
                self._custom.delete_namespaced_custom_object(
                    RAY_GROUP, RAY_VERSION, run.namespace, RAY_PLURAL, run.name
                )
            else:
                # Without a policy the API server deletes only the Job and leaves its pods running. Foreground keeps the
                # Job until they have ended, so that ``create`` does not start a second one beside them.
                self._batch.delete_namespaced_job(run.name, run.namespace, propagation_policy="Foreground")

    def _suspend(self, run: RunView, suspend: bool) -> None:
        patch = {"spec": {"suspend": suspend}}
        with translate_errors():
            if run.kind == "RayJob":
                self._custom.patch_namespaced_custom_object(
                    RAY_GROUP, RAY_VERSION, run.namespace, RAY_PLURAL, run.name, patch
                )
            else:
                self._batch.patch_namespaced_job(run.name, run.namespace, patch)

    def _pod_log(self, name: str, container: str, follow: bool, tail: int | None) -> Iterator[str]:
        bounded = {} if tail is None else {"tail_lines": tail}
        with translate_errors():  # also around the reading: a stream may break at any moment
            answer = self._core.read_namespaced_pod_log(
                name, self.namespace, container=container, follow=follow, _preload_content=False, **bounded
            )
            # ``stream`` yields the log as it grows; by default the client would read it to its end first. A chunk may
            # end anywhere, also inside a UTF-8 character, so bytes are joined to lines before they are decoded.
            rest = b""
            for chunk in answer.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")

    def _require_ray(self) -> None:
        try:
            with translate_errors():
                self._custom.list_namespaced_custom_object(RAY_GROUP, RAY_VERSION, self.namespace, RAY_PLURAL, limit=1)
        except NotFound as error:
            raise ConfigurationError(
                "the cluster has no RayJob API: install the KubeRay operator, or choose --backend job"
            ) from error

    def _plain(self, item: Any, kind: str) -> dict[str, Any]:
        return {**self._to_dict(item), "kind": kind}

    def _to_dict(self, item: Any) -> dict[str, Any]:
        # The client's objects become dictionaries with the API's own names (creationTimestamp, not creation_timestamp),
        # as custom objects have them already: both kinds of jobs are read by the same code.
        return self._api.sanitize_for_serialization(item)


def _with_name(manifest: Mapping[str, Any], known: Iterable[RunView], attempt: int) -> dict[str, Any]:
    """Return the manifest with a name that follows from the run, the step and their jobs so far.

    Looking and creating are two calls, so two callers at the same moment may both see no unfinished job. Both then
    choose the same name, which the API server gives to one of them only.
    """
    metadata = dict(manifest["metadata"])
    prefix = metadata.pop("generateName")
    seen = [
        metadata["labels"][RUN_LABEL],
        metadata["labels"][STEP_LABEL],
        str(attempt),
        *sorted(run.name for run in known),
    ]
    digest = hashlib.sha256("\n".join(seen).encode()).digest()
    suffix = base64.b32encode(digest).decode().lower()[:NAME_SUFFIX]
    return {**manifest, "metadata": {**metadata, "name": prefix[:NAME_PREFIX] + suffix}}


def _is_part_of_another(job: Mapping[str, Any]) -> bool:
    """Return whether the Job is that of a run's engines, or the submitter that KubeRay creates for a RayJob."""
    metadata = job["metadata"]
    owners = metadata.get("ownerReferences") or []
    return metadata["labels"].get(COMPONENT_LABEL) == COMPONENT or any(owner["kind"] == "RayJob" for owner in owners)


class LogSource(NamedTuple):
    """One start of a container."""

    pod: str
    container: str
    restarts: int


def _log_source(pod: Mapping[str, Any], engine: int | None) -> LogSource | None:
    """Return what has the log to show; None for a pod without a log yet, a worker, or another engine."""
    labels, status = pod["metadata"].get("labels") or {}, pod.get("status") or {}
    if status.get("phase") == "Pending" or labels.get("ray.io/node-type"):
        return None
    # Only pod 0 runs the trainer, which reports for all ranks; the other pods hold one rank each.
    if labels.get("batch.kubernetes.io/job-completion-index", "0") != str(engine or 0):
        return None
    if (labels.get(COMPONENT_LABEL) == COMPONENT) != (engine is not None):
        return None
    # Engines are started again in their pods, each time with a new log.
    restarts = sum(int(state.get("restartCount") or 0) for state in status.get("containerStatuses") or [])
    return LogSource(pod["metadata"]["name"], pod["spec"]["containers"][0]["name"], restarts)
