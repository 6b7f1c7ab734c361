"""Tests the sources one by one: which files they list, whom they ask for credentials, what a refusal says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.storage.fetch import main, open_source
from searchrl.storage.sources import SOURCES, object_store
from searchrl.storage.sources.s3 import S3Source
from tests.fakes.aws_server import ROLE, AwsServer, needs_openssl, serve_aws
from tests.fakes.file_stores import FILES, FileStores, fetched_files, run_fetch, serve_file_stores

pytestmark = pytest.mark.usefixtures("no_credentials")

MAX_RETRIES = object_store.RETRIES.get("max_retries", 0)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    objects = {f"a/b/{name}": content for name, content in FILES.items()}
    # What consoles create for folders, and a neighbor that shares the prefix.
    objects |= {"a/b/": b"", "a/b/deep/": b"", "a/bc/other": b"other", "a/b.jsonl": b"one object"}
    with serve_aws(tmp_path_factory.mktemp("aws"), objects) as server:
        yield server


@pytest.fixture
def asked(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """The server as the environment names it, with nothing seen yet and no credentials."""
    aws.seen.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", aws.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(aws.certificate))
    return aws


def use_key(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", aws.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws.secret_key)


# --- S3, as moto implements it


@needs_openssl
def test_a_folder_of_a_bucket_arrives_from_a_store_that_verifies_signatures(
    asked: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(asked, monkeypatch)
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    assert all(f"Credential={asked.access_key}/" in request for request in asked.seen)


@needs_openssl
def test_one_object_of_a_bucket_arrives_in_a_folder(
    asked: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(asked, monkeypatch)
    run_fetch("s3://bucket/a/b.jsonl", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == {"b.jsonl": b"one object"}


@needs_openssl
@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket/a/nothing", "s3://bucket/a/nothing: nothing lies there"),
        ("s3://other/a", "s3://other/a: not found (HTTP 404 NoSuchBucket)"),
    ],
)
def test_what_a_bucket_does_not_hold_is_reported_in_one_sentence(
    asked: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, words: str
) -> None:
    use_key(asked, monkeypatch)
    with pytest.raises(ConfigurationError) as caught:
        run_fetch(uri, tmp_path / "m")
    assert str(caught.value) == words


@needs_openssl
def test_a_wrong_secret_is_refused_in_one_sentence_that_names_the_variables(
    asked: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(asked, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigurationError) as caught:
        run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert re.fullmatch(
        r"s3://bucket/a/b: access refused \(HTTP 403 SignatureDoesNotMatch\); credentials: AWS_ACCESS_KEY_ID .+",
        str(caught.value),
    )
    assert len(asked.seen) == 1


@needs_openssl
def test_a_web_identity_is_exchanged_for_a_key(
    asked: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("the-pods-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    exchange, *requests = asked.seen
    assert "Action=AssumeRoleWithWebIdentity" in exchange and "WebIdentityToken=the-pods-token" in exchange
    assert all("Credential=ASIA" in request and asked.access_key not in request for request in requests)


@needs_openssl
def test_a_store_with_an_unknown_certificate_is_not_trusted(
    asked: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(asked, monkeypatch)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(Unavailable, match="s3://bucket/a/b: error sending request"):
        run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert not asked.seen


# --- the three clouds, as far as the server of this test goes


def test_the_credentials_of_a_container_are_asked_for_and_used(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("pod-identity")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{store.url}/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    identity, *requests = store.seen
    assert (identity["path"], identity["authorization"]) == ("/credentials", "pod-identity")
    assert all("Credential=container/" in request["authorization"] for request in requests)
    assert all(request["x-amz-security-token"] == "t" for request in requests)


def test_the_role_of_an_instance_is_used_if_there_is_one(store: FileStores, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_anonymous() -> bool:
        return "skip_signature" in S3Source("s3://bucket/a/b").open_store("bucket").config

    monkeypatch.setenv("AWS_METADATA_ENDPOINT", store.url)
    assert not is_anonymous()
    assert [request["path"] for request in store.seen] == [
        "/latest/api/token",
        "/latest/meta-data/iam/security-credentials/",
    ]
    store.failures = [404]
    assert is_anonymous()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert is_anonymous()


def test_without_credentials_requests_are_anonymous(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert store.seen and not any("authorization" in request for request in store.seen)


def test_a_folder_of_google_cloud_storage_arrives_with_the_account_of_the_pod(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_BASE_URL", store.url)
    monkeypatch.setenv("GCE_METADATA_HOST", store.url.removeprefix("http://"))
    run_fetch("gs://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    requests = [request for request in store.seen if request["path"].startswith("/bucket")]
    assert requests and all(request["authorization"] == "Bearer google" for request in requests)


def test_a_folder_of_azure_arrives_with_the_workload_identity(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("the-pods-token")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", store.url)
    # The variables that the webhook of Azure's workload identity adds to a pod.
    monkeypatch.setenv("AZURE_CLIENT_ID", "client")
    monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", store.url)
    run_fetch("az://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    exchange, *requests = store.seen
    assert exchange["path"] == "/tenant/oauth2/v2.0/token"
    assert "client_assertion=the-pods-token" in exchange["body"]
    assert all(request["authorization"] == "Bearer azure" for request in requests)


def test_azure_needs_the_name_of_the_account(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        run_fetch("az://bucket/a/b", tmp_path / "m")


def test_a_body_that_breaks_off_continues_where_it_ended(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(object_store.RETRIES, "max_retries", MAX_RETRIES)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    store.files = {"rows": bytes(range(256)) * 10_000}
    store.cut = [1_000_000]
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == store.files
    assert store.seen[-1]["range"].startswith("bytes=1000000-")


def test_a_redirect_to_another_host_carries_no_authorization(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("HF_ENDPOINT", store.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serve_file_stores(FILES) as other:
        store.redirects = [f"{other.url}/bucket?list-type=2&prefix=a/b/".replace("127.0.0.1", "localhost")]
        run_fetch("s3://bucket/a/b", tmp_path / "m")
        assert len(other.seen) == 1 and "authorization" not in other.seen[0]
        store.large = {"weights": sha256(b"w").hexdigest()}
        store.files = other.files = {"weights": b"w"}
        store.hub_redirect = other.url.replace("127.0.0.1", "localhost")
        run_fetch("hf://org/name", tmp_path / "n")
        assert len(other.seen) == 2 and "authorization" not in other.seen[1]
        assert all("authorization" in request for request in store.seen if "agent-harnesses" not in request["path"])


# --- the local machine


def test_a_machine_without_certificates_of_its_own_can_fetch(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES


def test_a_full_disk_is_one_sentence_that_says_what_to_do(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    store.files = {"rows": bytes(1 << 20)}
    # The limit of a process for the size of its files stands in for a disk; writing more fails in the same place.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16));"
        "import errno; from searchrl.storage import durable_files;"
        "durable_files.FULL_DISK |= {errno.EFBIG};"
        "from searchrl.storage.fetch import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "s3://bucket/a/b", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"fetch: no space left for \S+/rows; enlarge the volume .+\n", done.stderr), done.stderr


# --- the registry


@pytest.mark.parametrize("scheme", sorted(SOURCES))
def test_help_and_the_message_for_an_unknown_scheme_name_every_source(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    form = SOURCES[scheme].form
    with pytest.raises(ConfigurationError) as caught:
        open_source("ftp://host/path")
    assert form in str(caught.value)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"  {form}\n      credentials: {SOURCES[scheme].credentials}\n" in capsys.readouterr().out


def test_no_library_of_a_source_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, searchrl.storage.fetch as f; f.open_source('s3://a/b'); f.open_source('hf://a/b');"
        "print([name for name in ('obstore', 'huggingface_hub', 'httpx2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
