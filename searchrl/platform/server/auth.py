"""Authorizes calls by API keys with scopes, from a mounted file that is read again when it changes."""

import base64
import hashlib
import re
import time
from enum import StrEnum
from pathlib import Path

import yaml

from searchrl.errors import ConfigurationError, Forbidden, Unauthenticated
from searchrl.platform.settings import NO_YAML

RELOAD_SECONDS = 1.0  # a revoked key works at most this much longer; in return most calls need no ``stat``
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """``admin`` includes ``read``."""

    READ = "read"
    ADMIN = "admin"


class KeyRing:
    """Valid keys by their SHA-256, so that no key stays in memory as text.

    The file is YAML: a list of ``{name: ..., key: ... | key_sha256: ..., scope: read | admin}``. A change of the file
    takes effect within a second; if the file becomes unreadable, the last good keys stay valid.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._checked = 0.0
        self._scopes: dict[str, Scope] = {}
        if path is not None:
            self._read(path)

    @classmethod
    def from_file(cls, path: Path | None) -> "KeyRing":
        """Read the keys in ``path``; None disables authentication.

        Raises:
            ConfigurationError: the file is missing or not in the documented form.
        """
        return cls(path)

    @property
    def enabled(self) -> bool:
        return self._path is not None

    def authorize(self, presented: str | None, needed: Scope) -> None:
        """Refuse the call unless a key of the file allows it.

        Args:
            presented: the key as sent, with or without the word ``Bearer``; or ``Basic`` credentials, as clients send
                them for ``http://:KEY@host``, with the key as password or as user.

        Raises:
            Unauthenticated: no key, or one that is not in the file.
            Forbidden: the key's scope does not cover ``needed``.
        """
        # Called for every request, always in the event loop's thread, so the keys need no lock.
        if not self.enabled:
            return
        self._reload_if_changed()
        keys = _presented_keys(presented or "")
        if not keys:
            raise Unauthenticated("no API key: send 'Authorization: Bearer KEY'")
        # Looking up a digest takes a time that may depend on the digest, but not usefully on the key: who does not know
        # the key cannot choose the digest. So no comparison in constant time is needed.
        scopes = (self._scopes.get(hashlib.sha256(key.encode()).hexdigest()) for key in keys)
        scope = next((scope for scope in scopes if scope is not None), None)
        if scope is None:
            raise Unauthenticated("this API key is not valid here")
        if needed is Scope.ADMIN and scope is not Scope.ADMIN:
            raise Forbidden("this call needs a key with scope 'admin'; yours has 'read'")

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._checked < RELOAD_SECONDS:
            return
        self._checked = now
        try:
            # ``stat`` follows links: Kubernetes renews a mounted Secret by replacing a symbolic link, which gives the
            # file another modification time.
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_size) != self._stamp:
                self._read(self._path)
        # The stamp stays old, so the next look, a second later, tries again. A file that is being edited locks nobody
        # out.
        except (OSError, ConfigurationError):
            return

    def _read(self, path: Path) -> None:
        try:
            # Before the content: if the file changes in between, the stamp is older than the content, and the file is
            # read once more. In the other order the change could be missed.
            stat = path.stat()
            rows = yaml.safe_load(path.read_text())
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"the API key file {path} is not there: write a list of {{name, key, scope}} into it (in Kubernetes, "
                "into the Secret's key 'keys'), or leave auth_keys_file unset to let everybody in"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"cannot read the API key file {path}: {error.strerror}") from error
        except NO_YAML as error:
            raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(rows, list) or not rows:
            raise ConfigurationError(f"{path}: expected a non-empty list of {{name, key, scope}}")
        scopes: dict[str, Scope] = {}
        for number, row in enumerate(rows, start=1):
            digest = _digest(row)
            if digest is None or row.get("scope") not in list(Scope):
                raise ConfigurationError(
                    f"{path}: entry {number} needs 'key' or 'key_sha256' (64 hex digits), and 'scope' as 'read' or "
                    "'admin'"
                )
            if not str(row.get("key", "")).isascii() or not str(row.get("key", "")).isprintable():
                raise ConfigurationError(
                    f"{path}: entry {number}: a key consists of printable ASCII, since headers carry nothing else"
                )
            scopes[digest] = Scope(row["scope"])
        # Replaced only after every entry was accepted.
        self._scopes = scopes
        self._stamp = (stat.st_mtime_ns, stat.st_size)


def _presented_keys(presented: str) -> list[str]:
    # Names of schemes are case-insensitive (RFC 9110, section 11.1). Basic credentials are ``user:password`` in base64
    # (RFC 7617); ``http://KEY@host`` makes the key the user, with an empty password.
    scheme, space, rest = presented.strip().partition(" ")
    if space and scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
        except ValueError:  # not base64, or not UTF-8
            return []
        return [key for key in (password, user) if key]
    key = rest.strip() if space and scheme.lower() == "bearer" else presented.strip()
    return [key] if key else []


def _digest(row: object) -> str | None:
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("key_sha256"), str):
        digest = str(row["key_sha256"]).strip().lower()
        return digest if _SHA256.fullmatch(digest) else None
    if isinstance(row.get("key"), str) and row["key"]:
        return hashlib.sha256(row["key"].encode()).hexdigest()
    return None
