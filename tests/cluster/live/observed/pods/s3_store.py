"""A store with the part of S3's protocol that a fetch uses: signed listing and GETs of one folder's files."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ACCESS_KEY = "Credential=reader/"


class Store(BaseHTTPRequestHandler):
    """``/BUCKET?list-type=2&prefix=NAME/`` and ``/BUCKET/NAME/FILE``, for a folder whose name is served under NAME."""

    folder = Path()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/":
            return self._answer(200, b"ready")
        if ACCESS_KEY not in self.headers.get("authorization", ""):
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if url.path.count("/") == 1:
            return self._answer(200, self._listing(parse_qs(url.query)["prefix"][0]).encode())
        path = self.folder / Path(unquote(url.path)).name
        return self._answer(200, path.read_bytes()) if path.is_file() else self._answer(404, b"")

    def _listing(self, prefix: str) -> str:
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file()]
        rows = "".join(
            f"<Contents><Key>{prefix}{path.name}</Key><Size>{path.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for path in files
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("etag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no access log."""


if __name__ == "__main__":
    Store.folder = Path(sys.argv[1])
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[2])), Store).serve_forever()
