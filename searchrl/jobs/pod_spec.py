"""Renders the pods of jobs: restricted security context, read-only root, shared storage at /data."""

from typing import Any

from searchrl.jobs.job_settings import DATA, KEYS_FOLDER, TLS_FOLDER, JobSettings
from searchrl.jobs.step import Program, Size, Step

Manifest = dict[str, Any]
USER = 10001  # the user of the images; pods of the chart have the same, so that they can read each other's files
INSTANCE_LABEL, COMPONENT_LABEL = "app.kubernetes.io/instance", "app.kubernetes.io/component"
RUN_LABEL, STEP_LABEL, DATA_LABEL = "searchrl.io/run", "searchrl.io/step", "searchrl.io/data"
AUTHORITY, AUTHORITY_VARIABLE = "ca.crt", "SEARCHRL_TLS_AUTHORITY"
ENVIRONMENT = {
    "HOME": "/tmp/home",  # the root file system is read-only
    "USER": "searchrl",
    "LOGNAME": "searchrl",
    # One thread that sleeps while it waits: more threads than free cores, or spinning ones, slow each other down.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def labels(step: Step, settings: JobSettings) -> dict[str, str]:
    """Return the labels of a job and its pods."""
    return {
        "app.kubernetes.io/name": "searchrl",
        INSTANCE_LABEL: settings.release,
        COMPONENT_LABEL: step.component,
        "app.kubernetes.io/part-of": "searchrl",
        "app.kubernetes.io/managed-by": "searchrl-jobs",
        RUN_LABEL: step.run_id,
        STEP_LABEL: step.name,
    }


def pod_template(step: Step, settings: JobSettings, containers: list[Manifest], grace_seconds: int) -> Manifest:
    """Return a pod template with the containers.

    Containers are never restarted in place: the Job's policy counts failures by pod, and the next pod continues from
    the storage.
    """
    return {
        "metadata": {
            "labels": {**labels(step, settings), DATA_LABEL: settings.claim_label},
            # Scaling down would evict the pod, and lose the work since the last checkpoint.
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        },
        "spec": {
            "restartPolicy": "Never",
            # No job calls the Kubernetes API, so a token would only be of use to an intruder.
            "automountServiceAccountToken": False,
            # They would add variables such as SEARCHRL_RETRIEVER_PORT=tcp://10.0.0.7:8080 for every service of the
            # namespace, which look like settings of ours.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_seconds,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                # By default the kubelet changes the group of every file of the volume at each start, which takes
                # minutes for a large one; this looks at its root only.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_placement(settings),
            "containers": containers,
            "volumes": _volumes(step, settings),
        },
    }


def container(program: Program, step: Step, settings: JobSettings) -> Manifest:
    """Return the container of a program."""
    values = {**ENVIRONMENT, **program.environment}
    if step.calls_services and settings.tls_secret:
        values[AUTHORITY_VARIABLE] = f"{TLS_FOLDER}/{AUTHORITY}"
    environment: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    if program.client_key and settings.auth_secret:
        reference = {"name": settings.auth_secret, "key": "client-key"}
        environment.append({"name": program.client_key, "valueFrom": {"secretKeyRef": reference}})
    manifest: Manifest = {
        "name": program.name,
        "image": settings.image_of(program.service),
        "imagePullPolicy": settings.pull_policy,
        "command": list(program.command),
        "env": environment,
        "resources": resources(program.size, settings, on_gpu=program.on_gpu),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The program's own message where it could write one, else the end of its log, for example after a kill.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(step, settings),
    }
    if program.ports:
        manifest["ports"] = [{"name": name, "containerPort": port} for name, port in program.ports.items()]
    if program.http_port is not None:
        manifest["startupProbe"] = {
            "httpGet": {"path": "/readyz", "port": program.http_port},
            # Five minutes to get ready, so that a model can be loaded from slow storage.
            "periodSeconds": 2,
            "failureThreshold": 150,
        }
    return manifest


def sidecar(program: Program, step: Step, settings: JobSettings) -> Manifest:
    """Return an init container with restart policy Always: it starts before the main container and ends after it."""
    return {**container(program, step, settings), "restartPolicy": "Always"}


def resources(size: Size, settings: JobSettings, *, on_gpu: bool = False) -> Manifest:
    """Return requests and limits; the CPU is not limited, so that a job can use idle cores."""
    gpus = {settings.gpu_resource: str(settings.gpus)} if on_gpu and settings.gpus else {}
    return {
        "requests": {"cpu": size.cpu, "memory": size.memory, **gpus},
        "limits": {"memory": size.memory, **gpus},
    }


def _placement(settings: JobSettings) -> Manifest:
    found: Manifest = {
        "affinity": {
            "podAffinity": {
                # A ReadWriteOnce claim can be mounted on one node only, so its users must meet there; for a shared
                # claim the preference does no harm.
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {DATA_LABEL: settings.claim_label}},
                        },
                    }
                ]
            }
        }
    }
    if settings.node_selector:
        found["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        found["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    if settings.runtime_class:
        found["runtimeClassName"] = settings.runtime_class
    if settings.priority_class:
        found["priorityClassName"] = settings.priority_class
    if settings.pull_secret:
        found["imagePullSecrets"] = [{"name": settings.pull_secret}]
    return found


def _volumes(step: Step, settings: JobSettings) -> list[Manifest]:
    # /tmp is limited, so that a program that fills it loses its pod rather than the node's disk.
    volumes: list[Manifest] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": settings.claim_name}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
    ]
    # Ray's object store is in /dev/shm, which is 64 MiB in a container by default.
    if step.workers:
        # Such a volume counts as memory of the containers that write to it.
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    if step.calls_services and settings.auth_secret:
        # Readable by the group, which is the pod's fsGroup: the files belong to root, and the program is another user.
        volumes.append({"name": "keys", "secret": {"secretName": settings.auth_secret, "defaultMode": 0o440}})
    if step.calls_services and settings.tls_secret:
        authority = {"secretName": settings.tls_secret, "items": [{"key": AUTHORITY, "path": AUTHORITY}]}
        volumes.append({"name": "tls", "secret": {**authority, "defaultMode": 0o440}})
    return volumes


def _mounts(step: Step, settings: JobSettings) -> list[Manifest]:
    mounts: list[Manifest] = [{"name": "data", "mountPath": DATA}, {"name": "tmp", "mountPath": "/tmp"}]
    if step.workers:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    if step.calls_services and settings.auth_secret:
        mounts.append({"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    if step.calls_services and settings.tls_secret:
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
    return mounts
