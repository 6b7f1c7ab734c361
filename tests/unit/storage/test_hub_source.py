"""The hub as a source, from a server that answers the routes of huggingface_hub."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError, Unavailable
from searchrl.storage.artifact_manifest import read_marker
from tests.fakes.file_stores import FileStores, fetched_files, run_fetch


@pytest.fixture
def hub(store: FileStores, monkeypatch: pytest.MonkeyPatch) -> FileStores:
    monkeypatch.setenv("HF_ENDPOINT", store.url)
    return store


def test_the_commit_of_a_branch_is_fetched_and_recorded(hub: FileStores, tmp_path: Path) -> None:
    run_fetch("hf://datasets/org/name", tmp_path / "m")
    marker = read_marker(tmp_path / "m")
    assert marker is not None and marker.revision == hub.commit
    assert not any("main" in path for path in hub.paths())


def test_a_fetch_that_resumes_after_a_new_commit_takes_all_files_of_the_new_one(
    hub: FileStores, tmp_path: Path
) -> None:
    hub.files = {"1.jsonl": b"old", "2.jsonl": b"old"}
    hub.large = {"2.jsonl": "0" * 64}  # does not match, so that the first fetch ends after one file
    with pytest.raises(Unavailable, match=r"2\.jsonl arrived cut off or changed"):
        run_fetch("hf://datasets/org/name", tmp_path / "m")
    assert (tmp_path / ".m.part" / "1.jsonl").read_bytes() == b"old"
    hub.commit, hub.large = "d" * 40, {}
    hub.files = {"1.jsonl": b"new", "2.jsonl": b"new"}
    run_fetch("hf://datasets/org/name", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == hub.files


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("hf://datasets/org/name/data", {"train.parquet", "more/test.parquet"}),
        ("hf://datasets/org/name@main/data/more/", {"test.parquet"}),
        ("hf://datasets/org/name/data/train.parquet", {"train.parquet"}),
        ("hf://org/name/encoder", {"config.json", "model.safetensors"}),
    ],
)
def test_a_folder_or_a_file_of_a_repository_arrives_alone(
    hub: FileStores, tmp_path: Path, uri: str, names: set[str]
) -> None:
    hub.files = dict.fromkeys(
        ("data/train.parquet", "data/more/test.parquet", "encoder/config.json", "encoder/model.safetensors"), b"x"
    )
    hub.files |= {"encoder/model.bin": b"pickle", "other": b"x"}
    run_fetch(uri, tmp_path / "m")
    assert set(fetched_files(tmp_path / "m")) == names


def test_a_file_of_another_checksum_than_the_hub_gives_is_not_kept(hub: FileStores, tmp_path: Path) -> None:
    hub.files = {"rows": b"changed"}
    hub.large = {"rows": sha256(b"correct").hexdigest()}
    with pytest.raises(Unavailable, match="rows arrived cut off or changed"):
        run_fetch("hf://datasets/org/name", tmp_path / "m")
    assert not (tmp_path / ".m.part" / "rows").exists()
    hub.files = {"rows": b"correct"}
    run_fetch("hf://datasets/org/name", tmp_path / "m")
    assert fetched_files(tmp_path / "m") == hub.files


def test_a_fetch_asks_the_hub_even_where_services_must_not(hub: FileStores, tmp_path: Path) -> None:
    """The images set HF_HUB_OFFLINE."""
    command = [sys.executable, "-m", "searchrl.storage.fetch", "hf://datasets/org/name", str(tmp_path / "m")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The library also asks once a day, without the token, for a list of programs that name themselves to the hub.
    asked = [request for request in hub.seen if "agent-harnesses" not in request["path"]]
    assert {request["authorization"] for request in asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://org/other", "not found, or private: credentials: HF_TOKEN"),
        ("hf://org/name@v9", "org/name has no revision v9"),
        ("hf://org/name/nothing", "org/name has no nothing"),
        ("hf://org/-name-", "write hf://"),
    ],
)
def test_what_a_hub_does_not_hold_is_reported_in_one_sentence(
    hub: FileStores, tmp_path: Path, uri: str, words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_fetch(uri, tmp_path / "m")
    assert str(caught.value).startswith(f"{uri}: {words}") and "\n" not in str(caught.value)


def test_a_gated_model_says_where_to_accept_its_conditions(hub: FileStores, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(ConfigurationError) as caught:
        run_fetch("hf://org/name", tmp_path / "m")
    page = f"{hub.url}/org/name"
    assert str(caught.value) == (
        f"hf://org/name: access is restricted: accept the conditions at {page}, and set HF_TOKEN"
    )


def test_a_server_that_is_no_hub_is_named(hub: FileStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/web")
    hub.files["api/models/org/name"] = b"<html>"
    with pytest.raises(ConfigurationError, match="does not answer as a hub does; check HF_ENDPOINT"):
        run_fetch("hf://org/name", tmp_path / "m")
