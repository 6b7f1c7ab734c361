"""Fetching over the protocols of S3, of a model hub and of the web, each from a small server in this test."""

import json
import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.storage import fetch as command
from searchrl.storage.artifact_manifest import Artifact, verify_folder, write_artifact
from searchrl.storage.fetch import fetch, open_source
from searchrl.storage.s3_source import Credentials, signed_headers
from searchrl.storage.source import RemoteFile

FILES = {"config.json": b"{}", "weights/model.safetensors": b"\x00" * 3_000_000, "a name.txt": b"spaces"}


class Store(BaseHTTPRequestHandler):
    """A server of one bucket, one hub repository and one web folder, all with the class's ``files``."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    failures: list[int] = []  # noqa: RUF012
    seen: list[dict[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Store.seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        if Store.failures:
            self.answer(Store.failures.pop(0), b"")
            return
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if "list-type" in query:
            self.answer(200, self.listing(query))
        elif path in ("/api/models/org/name/tree/main", "/api/datasets/org/name/tree/main"):
            rows = [{"type": "file", "path": name, "size": len(data)} for name, data in Store.files.items()]
            self.answer(200, json.dumps(rows).encode())
        else:
            name = (
                path.removeprefix("/bucket/a/b/")
                .removeprefix("/datasets")
                .removeprefix("/org/name/resolve/main/")
                .removeprefix("/web/")
            )
            data = Store.files.get(name)
            self.answer(404 if data is None else 200, data or b"")

    def listing(self, query: dict[str, list[str]]) -> bytes:
        """A listing of two keys per page, so that paging is used."""
        names = sorted(Store.files)
        start = int(query.get("continuation-token", ["0"])[0])
        rows = "".join(
            f"<Contents><Key>a/b/{name}</Key><Size>{len(Store.files[name])}</Size></Contents>"
            for name in names[start : start + 2]
        )
        more = start + 2 < len(names)
        token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if more else ""
        head = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        return f"{head}<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>".encode()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no access log."""


@pytest.fixture
def store() -> Iterator[str]:
    Store.files, Store.failures, Store.seen = dict(FILES), [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def run(uri: str, folder: Path, client: httpx.Client, store: str, sha256: str = "") -> str:
    environment = {"AWS_ENDPOINT_URL_S3": store, "HF_ENDPOINT": store}
    return fetch(uri, folder, open_source(uri, client, environment), sha256=sha256, sleep=lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", ".fetched.json")
    }


def test_a_folder_of_a_bucket_arrives_complete_with_a_manifest(
    store: str, client: httpx.Client, tmp_path: Path
) -> None:
    digest = run("s3://bucket/a/b", tmp_path / "m", client, store)
    assert contents(tmp_path / "m") == FILES
    artifact = verify_folder(tmp_path / "m")
    assert artifact is not None and artifact.digest == digest
    assert {path.name for path in tmp_path.iterdir()} == {"m", ".m.lock"}


def test_a_second_fetch_asks_the_store_nothing(store: str, client: httpx.Client, tmp_path: Path) -> None:
    first = run("s3://bucket/a/b", tmp_path / "m", client, store)
    Store.seen.clear()
    assert run("s3://bucket/a/b", tmp_path / "m", client, store, sha256=first) == first
    assert not Store.seen


def test_an_interrupted_fetch_goes_on_with_the_files_it_lacks(store: str, client: httpx.Client, tmp_path: Path) -> None:
    held = Store.files.pop("config.json")
    run("s3://bucket/a/b", tmp_path / "part", client, store)
    (tmp_path / "part" / ".fetched.json").unlink()
    (tmp_path / "part" / "manifest.json").unlink()
    (tmp_path / "part").rename(tmp_path / ".m.part")
    Store.files["config.json"] = held
    Store.seen.clear()
    run("s3://bucket/a/b", tmp_path / "m", client, store)
    assert contents(tmp_path / "m") == FILES
    assert [seen["path"] for seen in Store.seen if "list-type" not in seen["path"]] == ["/bucket/a/b/config.json"]


@pytest.mark.parametrize("has_manifest", [True, False])
def test_everything_fetched_is_flushed_before_the_folder_gets_its_name_and_the_name_too(
    store: str, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_manifest: bool
) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "rows").write_bytes(b"rows")
    write_artifact(source, Artifact("corpus"))
    Store.files = {"a/b/rows": b"rows", "a/b/.hidden": b"h"}
    if has_manifest:
        Store.files["manifest.json"] = (source / "manifest.json").read_bytes()
    flushed: list[str] = []

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        temporary = re.fullmatch(r"\.(.+?)\.(\d+-[0-9a-f]{8}\.)?tmp", path.name)
        flushed.append((path.with_name(temporary[1]) if temporary else path).relative_to(tmp_path).as_posix())

    monkeypatch.setattr(os, "fsync", note)
    run("s3://bucket/a/b", tmp_path / "m", client, store)
    files = {"a/b/rows", "a/b/.hidden", "manifest.json", ".fetched.json"}
    assert {f".m.part/{name}" for name in files} | {".m.part", ".m.part/a", ".m.part/a/b"} <= set(flushed)
    assert flushed[-3:] == [".m.part/.fetched.json", ".m.part", "."]


def test_a_second_fetch_into_the_same_folder_is_refused_until_the_first_has_ended(
    store: str, client: httpx.Client, tmp_path: Path
) -> None:
    source = open_source("s3://bucket/a/b", client, {"AWS_ENDPOINT_URL_S3": store})
    refused: list[str] = []

    class Slow:
        """A source from which a second fetch starts while the first one reads it."""

        def files(self) -> list[RemoteFile]:
            with pytest.raises(Unavailable, match="another fetch into") as caught:
                run("s3://bucket/a/b", tmp_path / "m", client, store)
            refused.append(str(caught.value))
            return source.files()

        def blocks(self, file: RemoteFile) -> Iterator[bytes]:
            return source.blocks(file)

    digest = fetch("s3://bucket/a/b", tmp_path / "m", Slow())
    assert len(refused) == 1
    assert run("s3://bucket/a/b", tmp_path / "m", client, store) == digest


def test_passing_failures_are_tried_again_and_lasting_ones_reported(
    store: str, client: httpx.Client, tmp_path: Path
) -> None:
    Store.failures = [503, 429, 500]
    run("s3://bucket/a/b", tmp_path / "m", client, store)
    Store.failures = [503] * 5
    with pytest.raises(Unavailable, match="HTTP 503"):
        run("s3://bucket/a/b", tmp_path / "n", client, store)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(("status", "words"), [(403, "access refused"), (404, "not found"), (401, "credentials")])
def test_a_refusal_is_final_and_says_what_to_do(
    store: str, client: httpx.Client, tmp_path: Path, status: int, words: str
) -> None:
    Store.failures = [status]
    with pytest.raises(ConfigurationError, match=words):
        run("s3://bucket/a/b", tmp_path / "m", client, store)
    assert len(Store.seen) == 1


def test_another_checksum_than_expected_leaves_nothing(store: str, client: httpx.Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"checksum [0-9a-f]{64}, expected 00"):
        run("s3://bucket/a/b", tmp_path / "m", client, store, sha256="00")
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]


def test_a_folder_that_holds_something_else_is_left_alone(store: str, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigurationError, match="was not fetched"):
        run("s3://bucket/a/b", tmp_path / "m", client, store)
    run("s3://bucket/a/b", tmp_path / "n", client, store)
    with pytest.raises(ConfigurationError, match="fetched from s3://bucket/a/b"):
        run("s3://bucket/other", tmp_path / "n", client, store)
    (tmp_path / "n" / "config.json").write_bytes(b"changed")
    with pytest.raises(ConfigurationError, match=r"config\.json does not match"):
        run("s3://bucket/a/b", tmp_path / "n", client, store)


def test_a_damaged_artifact_of_ours_is_refused(store: str, client: httpx.Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "index").write_bytes(b"right")
    write_artifact(source, Artifact("index"))
    Store.files = {"index": b"wrong", "manifest.json": (source / "manifest.json").read_bytes()}
    with pytest.raises(ConfigurationError, match="does not match its checksum"):
        run("s3://bucket/a/b", tmp_path / "m", client, store)


def test_a_model_of_a_hub_comes_without_code_and_other_frameworks(
    store: str, client: httpx.Client, tmp_path: Path
) -> None:
    Store.files = {"config.json": b"{}", "model.safetensors": b"w", "model.bin": b"pickle", "onnx/m.onnx": b"o"}
    run("hf://org/name", tmp_path / "m", client, store)
    assert set(contents(tmp_path / "m")) == {"config.json", "model.safetensors"}
    Store.files = {"config.json": b"{}", "model.bin": b"pickle"}
    with pytest.raises(ConfigurationError, match="safetensors"):
        run("hf://org/name", tmp_path / "n", client, store)


def test_a_file_and_a_folder_with_a_manifest_come_from_the_web(
    store: str, client: httpx.Client, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "corpus").write_bytes(b"rows")
    write_artifact(source, Artifact("corpus"))
    Store.files = {"corpus": b"rows", "manifest.json": (source / "manifest.json").read_bytes(), "q.jsonl": b"{}\n"}
    run(f"{store}/web/", tmp_path / "m", client, store)
    assert contents(tmp_path / "m") == {"corpus": b"rows"}
    run(f"{store}/web/q.jsonl", tmp_path / "n", client, store)
    assert contents(tmp_path / "n") == {"q.jsonl": b"{}\n"}


def test_a_source_cannot_write_outside_its_folder(store: str, client: httpx.Client, tmp_path: Path) -> None:
    Store.files = {"../../evil": b"x"}
    with pytest.raises(ConfigurationError, match="outside its folder"):
        run("s3://bucket/a/b", tmp_path / "m", client, store)


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3://bucket", "hf://name", "/a/folder"])
def test_an_address_that_is_none_is_one_sentence_and_code_2(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "exit_on_sigterm", lambda: None)
    assert command.main([uri, str(tmp_path / "m")]) == 2
    assert capsys.readouterr().err.startswith(f"fetch: {uri}")


def test_requests_are_signed_when_there_is_a_key(store: str, client: httpx.Client, tmp_path: Path) -> None:
    environment = {"AWS_ENDPOINT_URL_S3": store, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    fetch("s3://bucket/a/b", tmp_path / "m", open_source("s3://bucket/a/b", client, environment))
    assert all(seen["authorization"].startswith("AWS4-HMAC-SHA256 Credential=k/") for seen in Store.seen)


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        # The examples of AWS's own documentation, "Signature Calculations for the Authorization Header".
        ("lifecycle=", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_signatures_are_those_of_the_documentation(query: str, signature: str) -> None:
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = signed_headers(
        f"https://examplebucket.s3.amazonaws.com/?{query}", "us-east-1", credentials, datetime(2013, 5, 24, tzinfo=UTC)
    )
    assert headers["authorization"].endswith(f"Signature={signature}")


ENCODER = {
    "config.json": b"{}",
    "modules.json": b"[]",
    "model.safetensors": b"\x00",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"\x01",
}


def test_a_sentence_transformers_model_keeps_its_sub_folders(store: str, client: httpx.Client, tmp_path: Path) -> None:
    others = {
        "onnx/model.onnx": b"",
        "onnx/config.json": b"{}",
        "2_Dense/pytorch_model.bin": b"",
        ".gitattributes": b"",
    }
    Store.files = {**ENCODER, **others}
    run("hf://org/name", tmp_path / "m", client, store)
    assert contents(tmp_path / "m") == ENCODER


@pytest.mark.parametrize("uri", ["hf://datasets/org/name", "hf://org/name", "hf://datasets/org/name@main"])
def test_a_corpus_or_an_index_of_a_hub_arrives_complete_without_safetensors(
    store: str, client: httpx.Client, tmp_path: Path, uri: str
) -> None:
    files = {"corpus.jsonl.gz": b"x", "generations/g/manifest.json": b"{}", "generations/g/bm25/.managed.json": b"[]"}
    Store.files = {**files, ".gitattributes": b"lfs", "README.md": b"card"}
    run(uri, tmp_path / "m", client, store)
    arrived = {path.relative_to(tmp_path / "m").as_posix() for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert arrived == {*files, "manifest.json", ".fetched.json"}


@pytest.mark.parametrize("name", ["part_aa", "corpus.jsonl", "a%20name"])
def test_a_file_of_the_web_needs_no_extension(store: str, client: httpx.Client, tmp_path: Path, name: str) -> None:
    Store.files = {"part_aa": b"first part", "corpus.jsonl": b"{}", "a name": b"spaces"}
    run(f"{store}/web/{name}", tmp_path / "m", client, store)
    assert contents(tmp_path / "m") == {unquote(name): Store.files[unquote(name)]}


def test_an_address_of_nothing_is_refused(store: str, client: httpx.Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not found"):
        run(f"{store}/web/nothing_here", tmp_path / "m", client, store)


def test_a_fetched_index_may_be_built_again_and_a_fetched_model_may_not_change(
    store: str, client: httpx.Client, tmp_path: Path
) -> None:
    Store.files = {"current": b"one", "generations/one/manifest.json": b"{}"}
    digest = run("s3://bucket/a/b", tmp_path / "index", client, store)
    (tmp_path / "index" / "current").write_text("two")
    (tmp_path / "index" / "generations" / "two").mkdir()
    assert run("s3://bucket/a/b", tmp_path / "index", client, store) == digest
    with pytest.raises(ConfigurationError, match="not what was fetched"):
        run("s3://bucket/a/b", tmp_path / "index", client, store, sha256="0" * 64)
    Store.files = {"config.json": b"{}"}
    run("s3://bucket/a/b", tmp_path / "model", client, store)
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="does not match its checksum"):
        run("s3://bucket/a/b", tmp_path / "model", client, store)


def test_a_git_lfs_pointer_is_not_taken_for_the_file(store: str, client: httpx.Client, tmp_path: Path) -> None:
    Store.files = {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}
    with pytest.raises(ConfigurationError, match="Git LFS pointer"):
        run("s3://bucket/a/b", tmp_path / "m", client, store)
