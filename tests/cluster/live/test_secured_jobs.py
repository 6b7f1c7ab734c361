"""Jobs reach the services of a release that requires keys and speaks TLS only."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.live.conftest import Release
from tests.cluster.live.job_chain import SMALL, JobChain
from tests.cluster.live.releases import install, new_namespace

pytestmark = pytest.mark.timeout(600)
KEY = "a-key-for-tests-only"
KEYS = f"[{{name: tests, key: {KEY}, scope: admin}}]"
VALUES = {
    "auth.mode": "secret", "auth.existingSecret": "api-keys", "tls.enabled": True, "tls.existingSecret": "certificate",
    "smallWorld.trainWorlds": 1, "smallWorld.testWorlds": 1,
}  # fmt: skip
SECRETS = ("--auth-secret", "api-keys", "--tls-secret", "certificate")
TINY = ("--set", "steps=1", "--set", "rollouts.groups_per_step=2", "--set", "rollouts.group_size=2")


@pytest.fixture(scope="module")
def secured_release(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobChain]:
    """A release with keys and a certificate."""
    pytest.importorskip("kubernetes")
    folder = tmp_path_factory.mktemp("certificate")
    names = [f"searchrl-{service}" for service in ("retriever", "generator", "evaluator")]
    write_certificate(folder, [*names, *(f"{name}-headless" for name in names)])
    with new_namespace() as namespace:
        release = Release("searchrl", namespace)
        files = [f"--from-file={name}={folder / name}" for name in ("tls.crt", "tls.key", "ca.crt")]
        release.kubectl("create", "secret", "generic", "certificate", *files)
        keys = (f"--from-literal=keys={KEYS}", f"--from-literal=client-key={KEY}")
        release.kubectl("create", "secret", "generic", "api-keys", *keys)
        yield JobChain(install(release, VALUES))


def test_baselines_training_and_evaluation_send_keys_over_tls(secured_release: JobChain) -> None:
    training = secured_release.submit("train", *TINY, *SECRETS, *SMALL)
    baseline = secured_release.submit("baseline", *SECRETS)
    secured_release.done(training)
    evaluation = secured_release.submit("evaluate", "--set", "limit=5", *SECRETS)
    secured_release.done(evaluation)
    secured_release.done(baseline)


def test_a_job_without_a_key_is_refused_with_one_sentence(secured_release: JobChain) -> None:
    questions = ("--questions", "small-world/train.jsonl")
    job = secured_release.submit("baseline", "--run-id", "locked-out", *questions, "--tls-secret", "certificate")
    outcome = secured_release.ended(job)
    assert (outcome.state, outcome.reason) == ("Failed", "PodFailurePolicy")
    (pod,) = json.loads(
        secured_release.release.kubectl("get", "pods", "-l", "searchrl.io/run=locked-out", "-o", "json")
    )["items"]
    message = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert message.strip().splitlines()[-1].startswith("build-baseline: no API key")


def write_certificate(folder: Path, names: list[str]) -> None:
    """Write a certificate authority, and a certificate for these names that it has signed."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", f"/CN={names[0]}")
    (folder / "names").write_text("subjectAltName=" + ",".join(f"DNS:{name}" for name in names))
    openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", "tls.crt",
            "-days", "2", "-extfile", "names")  # fmt: skip
