"""API keys: scopes, hashed keys, and reloading of the key file."""

import hashlib
import os
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError, Forbidden, Unauthenticated
from searchrl.platform.server import auth
from searchrl.platform.server.auth import KeyRing, Scope


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_a_file_everyone_may_call() -> None:
    KeyRing.from_file(None).authorize(None, Scope.ADMIN)


def test_read_keys_read_and_admin_keys_do_both(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret-admin").hexdigest()
    keys = KeyRing.from_file(
        write(
            tmp_path / "keys.yaml",
            f"- {{name: app, key: secret-read, scope: read}}\n- {{name: ops, key_sha256: {digest}, scope: admin}}\n",
        )
    )
    keys.authorize("Bearer secret-read", Scope.READ)
    keys.authorize("secret-admin", Scope.READ)
    keys.authorize("Bearer secret-admin", Scope.ADMIN)
    with pytest.raises(Forbidden):
        keys.authorize("Bearer secret-read", Scope.ADMIN)
    for wrong in (None, "", "Bearer ", "Bearer nope", "secret-rea"):
        with pytest.raises(Unauthenticated):
            keys.authorize(wrong, Scope.READ)


def test_a_changed_file_is_read_again_and_a_broken_one_keeps_the_old_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0.0)
    path = write(tmp_path / "keys.yaml", "- {name: a, key: one, scope: read}\n")
    keys = KeyRing.from_file(path)
    write(path, "- {name: a, key: two-longer, scope: read}\n")
    keys.authorize("two-longer", Scope.READ)
    with pytest.raises(Unauthenticated):
        keys.authorize("one", Scope.READ)
    write(path, "{")
    os.utime(path, ns=(1, 1))
    keys.authorize("two-longer", Scope.READ)


@pytest.mark.parametrize(
    "content", ["", "[]", "a: b", "- {key: k}", "- {key: k, scope: root}", "- {scope: read}", "- x", "{",
     "- {key: k, scope: [read]}", "- {name: 2026-13-45, key: k, scope: read}", "- {key: k\u00fc, scope: read}",
     '- {key: "k\\n", scope: read}', "- {key: 5, scope: read}", "- {key_sha256: abc, scope: read}", "\udcff", "\0"],
)  # fmt: skip
def test_a_key_file_in_another_form_is_refused_at_start_and_changes_nothing_later(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchrl.platform.server.auth.RELOAD_SECONDS", 0.0)
    file = write(tmp_path / "keys.yaml", "- {key: good, scope: read}")
    ring = KeyRing.from_file(file)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"keys\.yaml"):
        KeyRing.from_file(file)
    ring.authorize("Bearer good", Scope.READ)


def test_a_missing_key_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not there: write a list"):
        KeyRing.from_file(tmp_path / "none.yaml")
