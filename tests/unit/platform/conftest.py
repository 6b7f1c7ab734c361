"""Fixtures that several tests of the platform share."""

from pathlib import Path

import pytest

from searchrl.platform.server.auth import KeyRing

KEY = "read-key"


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    """A key ring with one key of scope read."""
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {{name: reader, key: {KEY}, scope: read}}\n")
    return KeyRing.from_file(path)
