"""The pod that mounts the release's storage satisfies the same rules as the release's jobs."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]


def read(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / path).read_text())


def test_the_storage_pod_is_as_restricted_as_a_job() -> None:
    shell, job = read("storage/shell.yaml")["spec"], read("jobs/index.yaml")["spec"]["template"]["spec"]
    for name in ("securityContext", "automountServiceAccountToken", "enableServiceLinks", "restartPolicy", "affinity"):
        assert shell[name] == job[name], name
    (container,) = shell["containers"]
    assert container["securityContext"] == job["containers"][0]["securityContext"]
    assert {"requests", "limits"} <= set(container["resources"])


def test_the_storage_pod_mounts_the_claim_of_the_jobs_and_is_under_the_releases_policies() -> None:
    shell, job = read("storage/shell.yaml"), read("jobs/index.yaml")["spec"]["template"]
    (claim,) = [
        volume["persistentVolumeClaim"] for volume in shell["spec"]["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claim["claimName"] == read("storage/claim.yaml")["metadata"]["name"] == "searchrl-data"
    for label in ("app.kubernetes.io/name", "app.kubernetes.io/instance", "searchrl.io/data"):
        assert shell["metadata"]["labels"][label] == job["metadata"]["labels"][label]
    assert shell["metadata"]["labels"]["app.kubernetes.io/component"].startswith("job-")


def test_manifests_are_valid() -> None:
    import kubernetes_validate

    for name in ("shell", "claim"):
        for version in ("1.30", "1.34"):
            kubernetes_validate.validate(read(f"storage/{name}.yaml"), version, strict=True)
