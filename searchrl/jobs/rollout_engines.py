"""Renders the vLLM servers of a training run: an indexed Job of their pods, their names in DNS, and their closed port.

A Job, not a StatefulSet: its pods have fixed names behind a headless Service, too; a pod on a lost node is replaced
without anybody deleting it; it can be suspended with its trainer; and its pods can end, which frees their GPUs.
The objects belong to the trainer's Job (``searchrl submit`` sets the owner), so that they are deleted with it. Their
pods end before that, with the run (``services/trainer/runs/serve_engine.py``).
"""

import hashlib
import json
from dataclasses import replace

from searchrl.jobs.job_settings import DATA, LABEL_CHARACTERS, JobSettings
from searchrl.jobs.pod_spec import COMPONENT_LABEL, INSTANCE_LABEL, RUN_LABEL, Manifest, container, labels, pod_template
from searchrl.jobs.step import Engines, Program, Step

COMPONENT = "engine-rollout"
ENGINES_LABEL = "searchrl.io/engines"
"""On the trainer's Job: the name of the Job of its engines."""
PORT = 8000
METRICS_PORT = 8080
"""Of the metrics alone; the chart's policy admits Prometheus to it, if its monitoring is enabled."""
PLUGIN = "/opt/searchrl/app/services/trainer/engines/vllm/plugin"
"""The folder that vLLM needs on PYTHONPATH, where the generator's image has it."""
START_SECONDS = 1800
"""Longest start of a server, and how long the trainer waits for it: a large model from slow storage, or a new node."""
IDLE_SECONDS = 1800
"""Without a call of the trainer for so long, an engine ends. An evicted trainer must find a node within this time, and
after a failure that nothing retries, GPUs are idle for so long."""
NAME_CHARACTERS = LABEL_CHARACTERS - 4
"""Of a Job whose pods have its name with a dash and up to three digits as host name."""
RETRIES = 1000
"""Restarts of all engines together. The Job itself never gives up: the trainer does, after engine.recovery_seconds, and
then the engines are idle."""
GRACE_SECONDS = 30
SHUTDOWN_SECONDS = 5  # a turn that is not done by then is sampled again on another server
SHARED_MEMORY = "8Gi"  # as in the chart; what is used of it counts as the container's memory


def engine_name(release: str, run_id: str) -> str:
    """Return the name of the Job and the Service; it is cut, with a digest, where a host name would be too long."""
    name = f"{release}-{run_id}-engines"
    if len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: NAME_CHARACTERS - 9].removesuffix('-')}-{digest}"


def engine_urls(name: str, count: int) -> list[str]:
    """Return the addresses of the servers for pods of the same namespace."""
    return [f"http://{name}-{number}.{name}:{PORT}" for number in range(count)]


def weights_folder(run_id: str) -> str:
    """Return the folder through which new weights reach the servers."""
    return f"{DATA}/runs/{run_id}/engine"


def engine_objects(step: Step, settings: JobSettings) -> list[Manifest]:
    """Render everything that a run needs beside its trainer; nothing for a run that samples by itself."""
    if step.engines is None:
        return []
    own = replace(step, component=COMPONENT, calls_services=False, workers=0)
    name = engine_name(settings.release, step.run_id)
    metadata: Manifest = {"name": name, "labels": labels(own, settings)}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    pods = selector(own, settings)
    service = {
        # Without a cluster IP each pod has a name of its own, and only while it is ready: of a replaced pod and its
        # successor, which have the same name, only one is found.
        "clusterIP": "None",
        "selector": pods,
        "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
    }
    # The routes that replace weights have no key: only the trainer of this run may reach them. Engines call nobody.
    policy = {
        "podSelector": {"matchLabels": pods},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [{"podSelector": {"matchLabels": selector(step, settings)}}],
                "ports": [{"port": PORT, "protocol": "TCP"}],
            }
        ],
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": policy},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": _job(own, step.engines, settings)},
    ]


def selector(step: Step, settings: JobSettings) -> dict[str, str]:
    """Return the labels that only the pods of this step and run have."""
    found = labels(step, settings)
    names = ("app.kubernetes.io/name", INSTANCE_LABEL, COMPONENT_LABEL, RUN_LABEL)
    return {name: found[name] for name in names}


def _job(step: Step, engines: Engines, settings: JobSettings) -> Manifest:
    placed = replace(
        settings,
        gpus=engines.gpus,
        # --image names the trainer's, which has no vLLM.
        image=engines.image,
        tolerations=(*settings.tolerations, *_tolerations(engines, settings)),
    )
    template = pod_template(step, placed, [_server(step, engines, placed)], GRACE_SECONDS)
    spec = template["spec"]
    spec["subdomain"] = engine_name(settings.release, step.run_id)
    # In place: the pod keeps its GPU and its address, and compiled code and the page cache keep the next start short.
    spec["restartPolicy"] = "OnFailure"
    # vLLM keeps compiled code in the home folder, which is below /tmp.
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    volumes["tmp"]["emptyDir"] = {"sizeLimit": "20Gi"}
    spec["volumes"].append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}})
    return {
        "completionMode": "Indexed",
        "completions": engines.count,
        "parallelism": engines.count,
        "backoffLimit": RETRIES,
        # A pod on a node that is lost stays Terminating: its successor does not wait for it.
        "podReplacementPolicy": "TerminatingOrFailed",
        "ttlSecondsAfterFinished": settings.keep_seconds,
        "template": template,
    }


def _server(step: Step, engines: Engines, settings: JobSettings) -> Manifest:
    program = Program(
        "vllm", "generator", _command(step, engines), engines.size, ports={"http": PORT, "metrics": METRICS_PORT},
        on_gpu=True, environment=_environment(engines),
    )  # fmt: skip
    manifest = container(program, step, settings)
    # vLLM chooses its threads by itself.
    manifest["env"] = [entry for entry in manifest["env"] if not entry["name"].startswith("OMP_")]
    for mount in manifest["volumeMounts"]:
        if mount["name"] == "data":
            mount["readOnly"] = True
    manifest["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
    # A busy server answers late, so a probe has 10 s; it is restarted after a minute without an answer.
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 10}
    return {
        **manifest,
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": START_SECONDS // 5},
        "readinessProbe": {**probe, "failureThreshold": 3},
        "livenessProbe": {**probe, "failureThreshold": 6},
    }


def _command(step: Step, engines: Engines) -> tuple[str, ...]:
    """Return vLLM's command behind the program that ends it; that program adds what follows from the model folder."""
    serve = ("python", "-m", "services.trainer.runs.serve_engine", "--run", f"{DATA}/runs/{step.run_id}")
    serve += ("--model", engines.model, "--port", str(PORT), "--metrics-port", str(METRICS_PORT))
    serve += ("--idle-seconds", str(IDLE_SECONDS), "--")
    command = (
        "vllm",
        "serve",
        engines.model,
        "--served-model-name=policy",
        "--host=0.0.0.0",
        f"--port={PORT}",
        f"--dtype={engines.dtype}",
        "--generation-config=vllm",
        "--logprobs-mode=processed_logprobs",
        f"--weight-transfer-config={json.dumps({'backend': 'trainer_shared_fs'})}",
        "--api-server-count=1",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
    )
    if engines.gpus > 1:
        command += (f"--tensor-parallel-size={engines.gpus}",)
    command += ("--gpu-memory-utilization=0.9",) if engines.gpus else ("--enforce-eager",)
    return serve + command


def _environment(engines: Engines) -> dict[str, str]:
    found = {
        "PYTHONPATH": PLUGIN,
        "VLLM_SERVER_DEV_MODE": "1",  # adds the routes that replace weights
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if not engines.gpus:
        found["VLLM_CPU_KVCACHE_SPACE"] = str(engines.kv_cache_gib)
        # Counting logprobs is compiled even in eager mode, and stops vLLM if there is no compiler.
        found["TORCHDYNAMO_DISABLE"] = "1"
    return found


def _tolerations(engines: Engines, settings: JobSettings) -> tuple[dict[str, str], ...]:
    """Return the toleration of GPU nodes, as in the chart's GPU profiles, unless it was given."""
    if not engines.gpus:
        return ()
    # Slices and shares of NVIDIA's GPUs are on nodes with the taint of complete ones.
    key = "nvidia.com/gpu" if settings.gpu_resource.startswith("nvidia.com/") else settings.gpu_resource
    if any(toleration.get("key") == key for toleration in settings.tolerations):
        return ()
    return ({"key": key, "operator": "Exists", "effect": "NoSchedule"},)
