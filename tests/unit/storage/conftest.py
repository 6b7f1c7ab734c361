"""An environment without the credentials of any cloud, and a server in place of the stores."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from searchrl.storage.sources import object_store
from tests.fakes.file_stores import FILES, FileStores, serve_file_stores

CLOUD_VARIABLES = re.compile(r"(AWS|AZURE|GOOGLE|GCE|HF)_|IDENTITY_ENDPOINT|SSL_CERT_FILE")


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, neither in the environment nor at home, and no repeated requests."""
    for name in [name for name in os.environ if CLOUD_VARIABLES.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(object_store.RETRIES, "max_retries", 0)


@pytest.fixture
def store(no_credentials: None) -> Iterator[FileStores]:
    with serve_file_stores(FILES) as stores:
        yield stores
