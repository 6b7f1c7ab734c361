"""A server with the part of MLflow's REST interface that the trainer uses; it keeps runs as MLflow shows them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


@dataclass
class FakeMlflow:
    """``answers`` are statuses of the next calls in place of an answer; ``keys`` what each call authorized itself by.

    ``metrics`` holds (name, step, value) as they arrived; ``refusal`` is what the body of an error says.
    """

    url: str = ""
    store: str = "mlflow-artifacts:/"
    answers: list[int] = field(default_factory=list)
    refusal: str = "X"
    keys: list[str | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: list[tuple[str, int, Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> list[tuple[int, Any]]:
        return [(step, value) for key, step, value in self.metrics if key == name]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Carry a call out; None: there is no such thing."""
        if path == "/experiments/get-by-name":
            name = body["experiment_name"]
            known = name in self.experiments
            return {"experiment": {"experiment_id": str(self.experiments.index(name))}} if known else None
        if path == "/experiments/create":
            self.experiments.append(body["name"])
            return {"experiment_id": str(len(self.experiments) - 1)}
        if path == "/runs/create":
            run_id = f"run{len(self.runs)}"
            info = {"run_id": run_id, "artifact_uri": f"{self.store}{body['experiment_id']}/{run_id}/artifacts"}
            self.runs[run_id] = info | {"run_name": body["run_name"], "status": "RUNNING"}
            return {"run": {"info": self.runs[run_id]}}
        if body["run_id"] not in self.runs:
            return None
        if path == "/runs/get":
            return {"run": {"info": self.runs[body["run_id"]]}}
        if path == "/runs/update":
            self.runs[body["run_id"]] |= body
        if path == "/runs/log-batch":
            assert len(body.get("params", [])) <= 100
            self.params |= {entry["key"]: entry["value"] for entry in body.get("params", [])}
            self.metrics += [(entry["key"], entry["step"], entry["value"]) for entry in body.get("metrics", [])]
        return {}


@contextmanager
def serve_mlflow() -> Iterator[FakeMlflow]:
    """Serve on a free port of the loopback until the end of the block."""
    fake = FakeMlflow()

    class Handler(BaseHTTPRequestHandler):
        def handle_call(self) -> None:
            url = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            fake.keys.append(self.headers.get("authorization"))
            fake.calls.append(url.path)
            status = fake.answers.pop(0) if fake.answers else 200
            found: dict[str, Any] | None = {}
            if status == 200 and url.path.startswith(ARTIFACTS):
                fake.artifacts[unquote(url.path.removeprefix(ARTIFACTS))] = json.loads(content)
            elif status == 200:
                body = json.loads(content) if content else {key: text for key, (text,) in parse_qs(url.query).items()}
                found = fake.answer(url.path.removeprefix(API), body)
            text = json.dumps({"error_code": fake.refusal} if found is None or status != 200 else found).encode()
            self.send_response(404 if found is None else status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = handle_call

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the test's output is enough."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
