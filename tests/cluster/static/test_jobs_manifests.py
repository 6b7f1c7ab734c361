"""The manifests in deploy/jobs are what the code renders, valid and restricted, and retry only what can succeed."""

import copy
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from searchrl.jobs.catalog import CATALOG
from searchrl.jobs.job_settings import JobSettings
from searchrl.jobs.pod_spec import pod_template
from searchrl.jobs.step import Program, Step
from tests.cluster.static.chart_rendering import render

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "jobs"
KUBE = Path(os.environ.get("SEARCHRL_KUBE", ROOT.parent / "shared" / "kube"))
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
NAMES = sorted(CATALOG)
JOBS = [name for name in NAMES if CATALOG[name].manifests[0]["kind"] == "Job"]
RAY_JOBS = [name for name in NAMES if name not in JOBS]


def read_all(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def read(name: str) -> dict[str, Any]:
    """The job; behind it may be the objects of its engines."""
    return read_all(name)[0]


def pod_templates(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = manifest["spec"]
    if manifest["kind"] == "Job":
        yield spec["template"]
    else:
        yield spec["submitterPodTemplate"]
        yield spec["rayClusterSpec"]["headGroupSpec"]["template"]
        yield from (group["template"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])


def templates_of(name: str) -> Iterator[dict[str, Any]]:
    for manifest in read_all(name):
        if manifest["kind"] in ("Job", "RayJob"):
            yield from pod_templates(manifest)


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def validate(manifest: dict[str, Any], version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_folder_holds_the_manifests_of_the_catalog_and_nothing_else() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("version", VERSIONS)
def test_every_job_and_every_pod_of_a_ray_job_is_valid(version: str) -> None:
    for name in JOBS:
        for manifest in read_all(name):
            validate(manifest, version)
    for name in RAY_JOBS:
        for template in pod_templates(read(name)):
            validate(
                {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}, version
            )


def test_ray_jobs_fit_the_operators_schema() -> None:
    path = KUBE / "crds" / "ray" / "ray.io_rayjobs.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay CRD in {path.parent}: set SEARCHRL_KUBE to a folder with crds/ray/ray.io_rayjobs.yaml")
    # A megabyte: the loader in Python takes half a minute.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    for name in RAY_JOBS:
        assert list(unknown_fields(read(name)["spec"], schema["properties"]["spec"])) == []


def unknown_fields(value: Any, schema: dict[str, Any], path: str = "spec") -> Iterator[str]:
    """Fields that the API server would drop, and values of another type."""
    if "properties" in schema:
        if not isinstance(value, dict):
            yield f"{path} is no object"
            return
        for name, part in value.items():
            if name in schema["properties"]:
                yield from unknown_fields(part, schema["properties"][name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif schema.get("type") == "array":
        for number, part in enumerate(value):
            yield from unknown_fields(part, schema["items"], f"{path}[{number}]")
    elif schema.get("type") in ("string", "integer", "boolean") and not schema.get("x-kubernetes-int-or-string"):
        expected = {"string": str, "integer": int, "boolean": bool}[schema["type"]]
        if not isinstance(value, expected):
            yield f"{path}: {value!r} is no {schema['type']}"


@pytest.mark.parametrize("name", NAMES)
def test_pods_are_restricted_and_have_read_only_roots(name: str) -> None:
    for template in templates_of(name):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(not {"hostPath"} & set(volume) for volume in spec["volumes"])
        for container in containers(template):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("name", NAMES)
def test_containers_have_requests_limits_and_fixed_images(name: str) -> None:
    for template in templates_of(name):
        for container in containers(template):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            assert re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", container["image"])


@pytest.mark.parametrize("name", NAMES)
def test_names_are_generated_and_labels_say_run_and_step(name: str) -> None:
    metadata = read(name)["metadata"]
    assert "name" not in metadata and metadata["generateName"].endswith("-")
    assert {"searchrl.io/run", "searchrl.io/step"} <= set(metadata["labels"])


@pytest.mark.parametrize("name", JOBS)
def test_evictions_do_not_count_and_configuration_errors_fail_at_once(name: str) -> None:
    spec = read(name)["spec"]
    main = spec["template"]["spec"]["containers"][0]["name"]
    first, *rest = spec["podFailurePolicy"]["rules"]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    by_code = {rule["onExitCodes"]["values"][0]: rule for rule in rest}
    assert by_code[2]["action"] == "FailJob" and by_code[143]["action"] == "Ignore"
    assert {rule["onExitCodes"]["containerName"] for rule in rest} == {main}
    assert spec["podReplacementPolicy"] == "Failed", "two pods of one run may not overlap"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_training_leaves_time_for_a_checkpoint() -> None:
    for name in ("train.yaml", "train-ray.yaml", "train-rayjob.yaml"):
        pods = list(pod_templates(read(name)))
        trainers = [pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "trainer"]
        assert trainers
        assert {pod["spec"]["terminationGracePeriodSeconds"] for pod in trainers} == {120}


def test_a_ray_job_can_be_queued_and_ends_its_cluster() -> None:
    spec = read("train-rayjob.yaml")["spec"]
    assert spec["submissionMode"] == "K8sJobMode" and spec["shutdownAfterJobFinishes"] is True
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"], "training groups have a fixed size"


def test_a_misspelled_field_is_found() -> None:
    broken = copy.deepcopy(read("train.yaml"))
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    with pytest.raises(Exception, match="terminationGracePeriod"):
        validate(broken, "1.34")


@pytest.mark.parametrize("claim", ["data", "data.v1", "c" * 63, "c" * 70, "c" * 53 + "." + "d" * 20])
def test_jobs_find_the_pods_of_the_release_that_use_their_claim(claim: str) -> None:
    """By a label value, which must be shorter than the name of a claim may be."""
    (deployment, *_) = [d for d in render("dev-cpu", f"storage.existingClaim={claim}") if d["kind"] == "Deployment"]
    label = JobSettings(claim=claim).claim_label
    assert deployment["spec"]["template"]["metadata"]["labels"]["searchrl.io/data"] == label
    assert len(label) <= 63
    step = Step("evaluate", "r", "evaluator", Program("evaluate", "evaluator", ()))
    template = pod_template(step, JobSettings(claim=claim), [], 30)
    assert template["metadata"]["labels"]["searchrl.io/data"] == label
