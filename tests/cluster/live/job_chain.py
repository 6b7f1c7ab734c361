"""Shared by the tests of the jobs: a release whose data come from jobs, and access to its storage."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.live.conftest import CHART, ROOT, Release, run
from tests.cluster.live.releases import await_that

JOBS = CHART.parents[1] / "jobs"
CPU = "40m"  # requested CPU; small, because all jobs of these tests share one node
SMALL = ("--cpu", CPU, "--memory", "1536Mi")
OVER = {"Complete", "Failed"}
STORAGE_POD = """
apiVersion: v1
kind: Pod
metadata:
  name: storage
  labels:
    app.kubernetes.io/name: searchrl
    app.kubernetes.io/instance: {release}
    app.kubernetes.io/component: trainer
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: storage
      image: localhost/searchrl/trainer:dev
      command: [sleep, infinity]
      env: [{{name: HOME, value: /tmp}}]
      resources: {{requests: {{cpu: 10m, memory: 64Mi}}, limits: {{memory: 1Gi}}}}
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
      volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {release}-data}}}}]
"""
ROLLOUTS = """
import json, pathlib, sys
from pyarrow import parquet

tables = [parquet.read_table(path) for path in sorted(pathlib.Path(sys.argv[1]).glob("step_*.parquet"))]
print(json.dumps([(row["group_id"], row["rollout_index"]) for table in tables for row in table.to_pylist()]))
"""
Found = TypeVar("Found")


def has_ray_operator() -> bool:
    """Whether the cluster serves KubeRay's kinds; starts its operator first if the test cluster provides it."""
    kube = Path(os.environ.get("SEARCHRL_KUBE") or ROOT.parent / "shared" / "kube") / "kube"
    if kube.is_file():
        subprocess.run([str(kube), "operator", "up"], capture_output=True, timeout=120)
    return "rayjobs" in run("kubectl", "api-resources", "--api-group=ray.io", "-o", "name")


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: str
    reason: str
    failed: int
    log: str


class JobChain:
    """Creates jobs of a release from manifests and by ``searchrl submit``, awaits them, and reads what they stored."""

    def __init__(self, release: Release) -> None:
        self.release = release

    def open_storage(self) -> None:
        """Create a pod that mounts the shared storage and may call the release's services."""
        self.create_text(STORAGE_POD.format(release=self.release.name))
        self.release.kubectl("wait", "pod/storage", "--for=condition=Ready", "--timeout=120s")

    def create(self, file: str) -> str:
        """``kubectl create -f`` of a file of deploy/jobs with a smaller CPU request; returns the job's name."""
        return self.create_text(re.sub(r"cpu: \d+m", f"cpu: {CPU}", (JOBS / file).read_text()))

    def create_text(self, manifest: str) -> str:
        """``kubectl create -f -``; returns the name of the created object."""
        command = ["kubectl", "-n", self.release.namespace, "create", "-f", "-", "-o", "name"]
        return subprocess.run(command, input=manifest, text=True, check=True, capture_output=True).stdout.strip()

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``searchrl`` in the release's namespace."""
        return [sys.executable, "-m", "searchrl.cli.main", *arguments, "-n", self.release.namespace]

    def searchrl(self, *arguments: str, code: int = 0) -> str:
        """Run ``searchrl``, require this exit code, and return what it printed."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=600)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *arguments: str) -> str:
        """``searchrl submit``; returns the job's name as kubectl writes it."""
        kind, name, word, *_ = self.searchrl("submit", *arguments).split()
        assert word == "created"
        return f"{kind.lower()}{'.ray.io' if kind == 'RayJob' else '.batch'}/{name}"

    def job(self, name: str) -> dict[str, Any]:
        return json.loads(self.release.kubectl("get", name, "-o", "json"))

    def done(self, name: str, seconds: float = 480) -> Outcome:
        """Wait for a job's end and require that no pod failed."""
        outcome = self.ended(name, seconds)
        assert (outcome.state, outcome.failed) == ("Complete", 0), (
            f"{name}: {outcome}\n{self.logs(name)}\n{self.pods()}"
        )
        return outcome

    def ended(self, name: str, seconds: float = 480) -> Outcome:
        """Wait until a job is complete or has failed."""

        def over() -> Outcome | None:
            status = self.job(name).get("status") or {}
            for entry in status.get("conditions") or []:
                if entry["type"] in OVER and entry["status"] == "True":
                    return Outcome(entry["type"], entry.get("reason", ""), status.get("failed") or 0, self.log(name))
            return None

        return self.wait_for(over, f"the end of {name}", seconds)

    def ray_done(self, name: str, clusters: int, seconds: float = 480) -> None:
        """Wait until KubeRay reports a RayJob's success after this number of consecutive Ray clusters."""

        def over() -> dict[str, Any] | None:
            status = self.job(name).get("status") or {}
            return status if status.get("jobDeploymentStatus") in ("Complete", "Failed") else None

        status = self.wait_for(over, f"the end of {name}", seconds)
        assert (status["jobStatus"], status.get("failed") or 0) == ("SUCCEEDED", clusters - 1), (
            f"{status}\n{self.pods()}"
        )

    def termination_of(self, pod: str, act: Callable[[], object]) -> tuple[str, int]:
        """End a pod by ``act``: returns the reason of its disruption ("" if there is none) and its exit code."""
        reason = '{.status.conditions[?(@.type=="DisruptionTarget")].reason}'
        path = f'jsonpath={reason}/{{.status.containerStatuses[0].state.terminated.exitCode}}{{"\\n"}}'
        command = ["kubectl", "-n", self.release.namespace, "get", "pod", pod, "--watch", "-o", path]
        # The watch starts before the act: a pod that is gone has no status left to read.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
            assert watch.stdout is not None
            watch.stdout.readline()
            act()
            self.release.kubectl("wait", f"pod/{pod}", "--for=delete", "--timeout=120s")
            watch.terminate()
            seen = [line.strip().partition("/") for line in watch.stdout]
        return max(word for word, _, _ in seen), max(int(code or "-1") for _, _, code in seen)

    def log(self, name: str) -> str:
        return self.release.kubectl("logs", name, "--all-containers", "--tail=60")

    def logs(self, name: str) -> str:
        """Logs of every pod of a job, including those that failed."""
        selector = f"batch.kubernetes.io/job-name={name.partition('/')[2]}"
        return self.release.kubectl("logs", "-l", selector, "--all-containers", "--prefix", "--tail=20")

    def pods(self) -> str:
        return self.release.kubectl("get", "pods,jobs")

    def ready_pods(self, run_id: str) -> int:
        """The number of ready pods of a run."""
        ready = '{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
        arguments = ("-l", f"searchrl.io/run={run_id}", "-o", f"jsonpath={ready}")
        return self.release.kubectl("get", "pods", *arguments).split().count("True")

    def trainer_after(self, run_id: str, step: int, *labels: str) -> str:
        """Wait until a run has done a step; returns its training pod, of several the one with these labels."""
        metrics = f"/data/runs/{run_id}/metrics.jsonl"
        wait = f'until [ "$(cat {metrics} 2>/dev/null | wc -l)" -ge {step} ]; do sleep 0.2; done'
        self.release.kubectl("exec", "storage", "--", "timeout", "200", "sh", "-c", wait)
        running = ("--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")
        selector = ",".join([f"searchrl.io/run={run_id}", *labels])
        (name,) = self.release.kubectl("get", "pods", "-l", selector, *running).split()
        return name

    def rollouts(self, run_id: str) -> list[tuple[int, int]]:
        """Group and index of every rollout that a run recorded, in the order of the steps."""
        text = self.python(ROLLOUTS, f"/data/runs/{run_id}/trajectories")
        return [(group_id, rollout_index) for group_id, rollout_index in json.loads(text)]

    def python(self, code: str, *arguments: str) -> str:
        """Run a Python program in the pod that mounts the storage; returns what it printed."""
        return self.release.kubectl("exec", "storage", "--", "python", "-c", code, *arguments)

    def read(self, path: str) -> str:
        return self.release.kubectl("exec", "storage", "--", "sh", "-c", f"cat /data/{path} 2>/dev/null || true")

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The lines of a run's ``metrics.jsonl`` so far."""
        lines = self.read(f"runs/{run_id}/metrics.jsonl").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def is_verified(self, folder: str) -> None:
        """Require that every file of a folder matches its manifest."""
        check = ("-m", "searchrl.storage.artifact_manifest", "verify", f"/data/{folder}")
        self.release.kubectl("exec", "storage", "--", "python", *check)

    def wait_for(self, find: Callable[[], Found | None], what: str, seconds: float = 120) -> Found:
        """Poll until ``find`` returns something; on a timeout, add the namespace's pods and jobs to the message."""
        try:
            return await_that(find, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.pods()}") from None
