"""A collector that keeps the traces sent to it by OTLP over HTTP; ``GET /payloads`` returns them, base64 in JSON."""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector(BaseHTTPRequestHandler):
    """Accepts any payload at ``/v1/traces``."""

    payloads: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.payloads.append(base64.b64encode(body).decode())
        self._answer(200 if self.path == "/v1/traces" else 404, b"")

    def do_GET(self) -> None:
        self._answer(200, json.dumps(self.payloads).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no access log."""


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Collector).serve_forever()
