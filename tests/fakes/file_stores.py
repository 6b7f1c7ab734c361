"""A server that answers as far as a fetch asks: one bucket of three clouds, one hub, one web folder, and identities."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from searchrl.storage.fetch import fetch, open_source

COMMIT = "c" * 40
PREFIX = "a/b/"
FILES = {"config.json": b"{}", "deep/er/rows.jsonl": b"{}\n", "a name, 100%.txt": b"spaces", ".hidden": b"h"}
"""What a store holds unless a test says otherwise: sub-folders, a name to be quoted, a hidden file."""
_DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@dataclass
class FileStores:
    """What the server holds, what it answers, and what it was asked.

    The same ``files`` lie below ``a/b/`` of the bucket ``bucket``, in the hub's repository ``org/name`` and in the web
    folder ``/web/``.

    Attributes:
        failures: statuses of the next answers.
        redirects: addresses that the next answers lead to.
        cut: bytes after which the next body breaks off.
        large: names of the files that the hub keeps in Git LFS, with the checksum that it gives for them.
        hub_redirect: the address of the server that the hub sends those who ask for a file in Git LFS to.
        gated: the hub asks to accept the conditions of the repository first.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    redirects: list[str] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    large: dict[str, str] = field(default_factory=dict)
    commit: str = COMMIT
    hub_redirect: str = ""
    gated: bool = False
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def paths(self, method: str = "GET") -> list[str]:
        return [request["path"] for request in self.seen if request["method"] == method]


@contextmanager
def serve_file_stores(files: dict[str, bytes]) -> Iterator[FileStores]:
    """Serve on a free port of the loopback until the end of the block."""
    stores = FileStores(dict(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"stores": stores}))
    stores.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stores
    finally:
        server.shutdown()
        server.server_close()


def run_fetch(uri: str, folder: Path, sha256: str = "") -> str:
    """Fetch without pauses between the attempts; return the digest."""
    with closing(open_source(uri)) as source:
        return fetch(uri, folder, source, sha256=sha256, sleep=lambda _: None)


def fetched_files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a fetched folder, without the files that the fetch itself writes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", ".fetched.json")
    }


class _Handler(BaseHTTPRequestHandler):
    stores: FileStores

    def do_GET(self) -> None:
        stores = self.stores
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        stores.seen.append({"method": self.command, "path": self.path, "body": body, **headers})
        if stores.failures:
            return self._answer(stores.failures.pop(0))
        if stores.redirects:
            return self._answer(307, location=stores.redirects.pop(0))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if (identity := self._identity(path)) is not None:
            return self._answer(200, identity.encode())
        if "list-type" in query:
            return self._answer(200, self._s3_listing(query))
        if query.get("comp") == ["list"]:
            return self._answer(200, self._azure_listing(query))
        if path.startswith("/api/"):
            return self._hub(path, parse_qs(body))
        for prefix in (f"/bucket/{PREFIX}", f"/datasets/org/name/resolve/{stores.commit}/", "/web/"):
            path = path.removeprefix(prefix)
        name = path.removeprefix(f"/org/name/resolve/{stores.commit}/")
        data = stores.files.get(name)
        return self._answer(404) if data is None else self._file(name, data)

    do_HEAD = do_POST = do_PUT = do_GET

    def _identity(self, path: str) -> str | None:
        """Return the credentials that an identity service of a cloud gives."""
        if path == "/credentials":  # of a container on AWS
            return json.dumps({"AccessKeyId": "container", "SecretAccessKey": "s", "Token": "t", "Expiration": _LATER})
        if path == "/latest/api/token" and self.command == "PUT":  # of an EC2 instance
            return "instance"
        if path == "/latest/meta-data/iam/security-credentials/":
            return "role"
        if path.startswith("/computeMetadata/v1/"):  # of a machine or a pod on Google's cloud
            return json.dumps({"access_token": "google", "expires_in": 3600, "token_type": "Bearer"})
        if path.endswith("/oauth2/v2.0/token"):  # of Azure
            return json.dumps({"access_token": "azure", "expires_in": 3600, "token_type": "Bearer"})
        return None

    def _s3_listing(self, query: dict[str, list[str]]) -> bytes:
        """A listing of two keys per page, so that paging is used."""
        names = sorted(name for name in self.stores.files if f"{PREFIX}{name}".startswith(query["prefix"][0]))
        start = int(query.get("continuation-token", ["0"])[0])
        rows = "".join(
            f"<Contents><Key>{PREFIX}{name}</Key><Size>{len(self.stores.files[name])}</Size>"
            "<LastModified>2026-10-21T07:28:00.000Z</LastModified></Contents>"
            for name in names[start : start + 2]
        )
        more = start + 2 < len(names)
        token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if more else ""
        head = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        return f"{head}<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>".encode()

    def _azure_listing(self, query: dict[str, list[str]]) -> bytes:
        names = sorted(name for name in self.stores.files if f"{PREFIX}{name}".startswith(query["prefix"][0]))
        rows = "".join(
            f"<Blob><Name>{PREFIX}{name}</Name><Properties><Last-Modified>{_DATE}</Last-Modified>"
            f"<Content-Length>{len(self.stores.files[name])}</Content-Length><Content-Type>x</Content-Type>"
            "<Etag>e</Etag></Properties></Blob>"
            for name in names
        )
        return f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker /></EnumerationResults>".encode()

    def _hub(self, path: str, form: dict[str, list[str]]) -> None:
        route = path.removeprefix("/api/models/org/name").removeprefix("/api/datasets/org/name")
        stores = self.stores
        if stores.gated:
            return self._answer(403, x_error_code="GatedRepo")
        if route in ("", "/revision/main", f"/revision/{stores.commit}"):
            return self._answer(200, json.dumps({"id": "org/name", "sha": stores.commit}).encode())
        if route.startswith("/revision/"):
            return self._answer(404, x_error_code="RevisionNotFound")
        wanted = form.get("paths", [""])[0]
        if route.startswith("/paths-info/"):
            folder = [{"type": "directory", "path": wanted, "oid": "0"}]
            inside = any(name.startswith(f"{wanted}/") for name in stores.files)
            rows = [self._row(wanted)] if wanted in stores.files else folder if inside else []
            return self._answer(200, json.dumps(rows).encode())
        if route.startswith(f"/tree/{stores.commit}"):
            below = route.removeprefix(f"/tree/{stores.commit}").strip("/")
            names = [name for name in stores.files if not below or name.startswith(f"{below}/")]
            return self._answer(200, json.dumps([self._row(name) for name in names]).encode())
        return self._answer(404, x_error_code="RepoNotFound")

    def _row(self, name: str) -> dict[str, object]:
        data = self.stores.files[name]
        row: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": "0"}
        if name in self.stores.large:
            row["lfs"] = {"oid": self.stores.large[name], "size": len(data), "pointerSize": 100}
        return row

    def _file(self, name: str, data: bytes) -> None:
        if self.stores.hub_redirect and name in self.stores.large:
            size, etag = str(len(data)), f'"{self.stores.large[name]}"'
            location = self.stores.hub_redirect + self.path
            headers = {"x_linked_size": size, "x_linked_etag": etag, "x_repo_commit": self.stores.commit}
            return self._answer(302, location=location, **headers)
        etag = f'"{self.stores.large.get(name) or hashlib.sha1(data).hexdigest()}"'
        given = self.headers.get("range", "")
        start = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
        headers = {"etag": etag, "last_modified": _DATE, "x_repo_commit": self.stores.commit}
        if given:
            headers["content_range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if given else 200, data[start:], **headers)

    def _answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), quote(value, safe=' :/,"-?=&%'))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.stores.cut.pop(0) if self.stores.cut and len(body) > self.stores.cut[0] else len(body)
        self.wfile.write(body[:cut])
        if cut < len(body):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Write no access log."""


_LATER = "2100-01-01T00:00:00Z"
