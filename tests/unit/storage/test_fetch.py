"""Fetching of a folder or a file: complete, checked, once, resumed, refused."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.storage import fetch as command
from searchrl.storage.artifact_manifest import Artifact, verify_folder, write_artifact
from searchrl.storage.fetch import fetch, open_source
from searchrl.storage.sources.base import RemoteFile, Source
from tests.fakes.file_stores import FileStores, fetched_files, run_fetch, serve_file_stores

FILES = {"config.json": b"{}", "weights/model.safetensors": b"\x00" * 3_000_000, "a name.txt": b"spaces"}


@pytest.fixture
def store(no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStores]:
    """A bucket and a hub, which the variables of the environment name."""
    with serve_file_stores(FILES) as stores:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", stores.url)
        monkeypatch.setenv("HF_ENDPOINT", stores.url)
        yield stores


def test_a_folder_of_a_bucket_arrives_complete_with_a_manifest(store: FileStores, tmp_path: Path) -> None:
    digest = run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    artifact = verify_folder(tmp_path / "m")
    assert artifact is not None and artifact.digest == digest
    assert {path.name for path in tmp_path.iterdir()} == {"m", ".m.lock"}


def test_a_second_fetch_asks_the_store_nothing(store: FileStores, tmp_path: Path) -> None:
    first = run_fetch("s3://bucket/a/b", tmp_path / "m")
    store.seen.clear()
    assert run_fetch("s3://bucket/a/b", tmp_path / "m", sha256=first) == first
    assert not store.seen


def test_an_interrupted_fetch_goes_on_with_the_files_it_lacks(store: FileStores, tmp_path: Path) -> None:
    held = store.files.pop("config.json")
    run_fetch("s3://bucket/a/b", tmp_path / "part")
    (tmp_path / "part" / ".fetched.json").unlink()
    (tmp_path / "part" / "manifest.json").unlink()
    (tmp_path / "part").rename(tmp_path / ".m.part")
    store.files["config.json"] = held
    store.seen.clear()
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == FILES
    assert [seen["path"] for seen in store.seen if "list-type" not in seen["path"]] == ["/bucket/a/b/config.json"]


@pytest.mark.parametrize("has_manifest", [True, False])
def test_everything_fetched_is_flushed_before_the_folder_gets_its_name_and_the_name_too(
    store: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_manifest: bool
) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "rows").write_bytes(b"rows")
    write_artifact(source, Artifact("corpus"))
    store.files = {"a/b/rows": b"rows", "a/b/.hidden": b"h"}
    if has_manifest:
        store.files["manifest.json"] = (source / "manifest.json").read_bytes()
    flushed: list[str] = []

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        temporary = re.fullmatch(r"\.(.+?)\.(\d+-[0-9a-f]{8}\.)?tmp", path.name)
        flushed.append((path.with_name(temporary[1]) if temporary else path).relative_to(tmp_path).as_posix())

    monkeypatch.setattr(os, "fsync", note)
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    files = {"a/b/rows", "a/b/.hidden", "manifest.json", ".fetched.json"}
    assert {f".m.part/{name}" for name in files} | {".m.part", ".m.part/a", ".m.part/a/b"} <= set(flushed)
    assert flushed[-3:] == [".m.part/.fetched.json", ".m.part", "."]


def test_a_second_fetch_into_the_same_folder_is_refused_until_the_first_has_ended(
    store: FileStores, tmp_path: Path
) -> None:
    source = open_source("s3://bucket/a/b")
    refused: list[str] = []

    class Slow(Source):
        """A source from which a second fetch starts while the first one reads it."""

        def files(self) -> list[RemoteFile]:
            with pytest.raises(Unavailable, match="another fetch into") as caught:
                run_fetch("s3://bucket/a/b", tmp_path / "m")
            refused.append(str(caught.value))
            return source.files()

        def download(self, file: RemoteFile, path: Path) -> None:
            source.download(file, path)

    digest = fetch("s3://bucket/a/b", tmp_path / "m", Slow("s3://bucket/a/b"))
    assert len(refused) == 1
    assert run_fetch("s3://bucket/a/b", tmp_path / "m") == digest


def test_passing_failures_are_tried_again_and_lasting_ones_reported(store: FileStores, tmp_path: Path) -> None:
    store.failures = [503, 429, 500]
    run_fetch("s3://bucket/a/b", tmp_path / "m")
    store.failures = [503] * 5
    with pytest.raises(Unavailable, match="HTTP 503"):
        run_fetch("s3://bucket/a/b", tmp_path / "n")
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(("status", "words"), [(403, "access refused"), (404, "not found"), (401, "credentials")])
def test_a_refusal_is_final_and_says_what_to_do(store: FileStores, tmp_path: Path, status: int, words: str) -> None:
    store.failures = [status]
    with pytest.raises(ConfigurationError, match=words):
        run_fetch("s3://bucket/a/b", tmp_path / "m")
    assert len(store.seen) == 1


def test_another_checksum_than_expected_leaves_nothing(store: FileStores, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"checksum [0-9a-f]{64}, expected 00"):
        run_fetch("s3://bucket/a/b", tmp_path / "m", sha256="00")
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]


def test_a_folder_that_holds_something_else_is_left_alone(store: FileStores, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigurationError, match="was not fetched"):
        run_fetch("s3://bucket/a/b", tmp_path / "m")
    run_fetch("s3://bucket/a/b", tmp_path / "n")
    with pytest.raises(ConfigurationError, match="fetched from s3://bucket/a/b"):
        run_fetch("s3://bucket/other", tmp_path / "n")
    (tmp_path / "n" / "config.json").write_bytes(b"changed")
    with pytest.raises(ConfigurationError, match=r"config\.json does not match"):
        run_fetch("s3://bucket/a/b", tmp_path / "n")


def test_a_damaged_artifact_of_ours_is_refused(store: FileStores, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "index").write_bytes(b"right")
    write_artifact(source, Artifact("index"))
    store.files = {"index": b"wrong", "manifest.json": (source / "manifest.json").read_bytes()}
    with pytest.raises(ConfigurationError, match="does not match its checksum"):
        run_fetch("s3://bucket/a/b", tmp_path / "m")


def test_a_model_of_a_hub_comes_without_code_and_other_frameworks(store: FileStores, tmp_path: Path) -> None:
    store.files = {"config.json": b"{}", "model.safetensors": b"w", "model.bin": b"pickle", "onnx/m.onnx": b"o"}
    run_fetch("hf://org/name", tmp_path / "m")
    assert set(fetched_files(tmp_path / "m")) == {"config.json", "model.safetensors"}
    store.files = {"config.json": b"{}", "model.bin": b"pickle"}
    with pytest.raises(ConfigurationError, match="safetensors"):
        run_fetch("hf://org/name", tmp_path / "n")


def test_a_file_and_a_folder_with_a_manifest_come_from_the_web(store: FileStores, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "corpus").write_bytes(b"rows")
    write_artifact(source, Artifact("corpus"))
    store.files = {"corpus": b"rows", "manifest.json": (source / "manifest.json").read_bytes(), "q.jsonl": b"{}\n"}
    run_fetch(f"{store.url}/web/", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == {"corpus": b"rows"}
    run_fetch(f"{store.url}/web/q.jsonl", tmp_path / "n")
    assert fetched_files(tmp_path / "n") == {"q.jsonl": b"{}\n"}


def test_a_source_cannot_write_outside_its_folder(store: FileStores, tmp_path: Path) -> None:
    store.files = {"../../evil": b"x"}
    with pytest.raises(ConfigurationError, match="outside its folder"):
        run_fetch("s3://bucket/a/b", tmp_path / "m")


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3://bucket", "hf://name", "/a/folder"])
def test_an_address_that_is_none_is_one_sentence_and_code_2(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "exit_on_sigterm", lambda: None)
    assert command.main([uri, str(tmp_path / "m")]) == 2
    assert capsys.readouterr().err.startswith(f"fetch: {uri}")


ENCODER = {
    "config.json": b"{}",
    "modules.json": b"[]",
    "model.safetensors": b"\x00",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"\x01",
}


def test_a_sentence_transformers_model_keeps_its_sub_folders(store: FileStores, tmp_path: Path) -> None:
    others = {
        "onnx/model.onnx": b"",
        "onnx/config.json": b"{}",
        "2_Dense/pytorch_model.bin": b"",
        ".gitattributes": b"",
    }
    store.files = {**ENCODER, **others}
    run_fetch("hf://org/name", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == ENCODER


@pytest.mark.parametrize("uri", ["hf://datasets/org/name", "hf://org/name", "hf://datasets/org/name@main"])
def test_a_corpus_or_an_index_of_a_hub_arrives_complete_without_safetensors(
    store: FileStores, tmp_path: Path, uri: str
) -> None:
    files = {"corpus.jsonl.gz": b"x", "generations/g/manifest.json": b"{}", "generations/g/bm25/.managed.json": b"[]"}
    store.files = {**files, ".gitattributes": b"lfs", "README.md": b"card"}
    run_fetch(uri, tmp_path / "m")
    arrived = {path.relative_to(tmp_path / "m").as_posix() for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert arrived == {*files, "manifest.json", ".fetched.json"}


@pytest.mark.parametrize("name", ["part_aa", "corpus.jsonl", "a%20name"])
def test_a_file_of_the_web_needs_no_extension(store: FileStores, tmp_path: Path, name: str) -> None:
    store.files = {"part_aa": b"first part", "corpus.jsonl": b"{}", "a name": b"spaces"}
    run_fetch(f"{store.url}/web/{name}", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == {unquote(name): store.files[unquote(name)]}


def test_an_address_of_nothing_is_refused(store: FileStores, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not found"):
        run_fetch(f"{store.url}/web/nothing_here", tmp_path / "m")


def test_a_fetched_index_may_be_built_again_and_a_fetched_model_may_not_change(
    store: FileStores, tmp_path: Path
) -> None:
    store.files = {"current": b"one", "generations/one/manifest.json": b"{}"}
    digest = run_fetch("s3://bucket/a/b", tmp_path / "index")
    (tmp_path / "index" / "current").write_text("two")
    (tmp_path / "index" / "generations" / "two").mkdir()
    assert run_fetch("s3://bucket/a/b", tmp_path / "index") == digest
    with pytest.raises(ConfigurationError, match="not what was fetched"):
        run_fetch("s3://bucket/a/b", tmp_path / "index", sha256="0" * 64)
    store.files = {"config.json": b"{}"}
    run_fetch("s3://bucket/a/b", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="does not match its checksum"):
        run_fetch("s3://bucket/a/b", tmp_path / "model")


def test_a_git_lfs_pointer_is_not_taken_for_the_file(store: FileStores, tmp_path: Path) -> None:
    store.files = {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}
    with pytest.raises(ConfigurationError, match="Git LFS pointer"):
        run_fetch("s3://bucket/a/b", tmp_path / "m")
