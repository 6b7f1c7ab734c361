"""An engine's pod serves until its run is over, completes only then, and is started again after everything else."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import Artifact, write_artifact
from services.trainer.runs.serve_engine import (
    ARCHITECTURES,
    LastCall,
    count_requests,
    find_end,
    model_flags,
    relay_metrics,
    serve,
)

SERVER = [sys.executable, "-c", "import time; time.sleep(600)"]
# vLLM's page, with the counters that its instrumentation writes.
PAGE = """# TYPE http_requests_total counter
http_requests_total{handler="/weight_info",method="GET",status="2xx"} 5.0
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 2.0
http_requests_total{handler="/v1/responses/{response_id}",method="GET",status="4xx"} 1.0
http_requests_created{handler="/weight_info",method="GET",status="2xx"} 1.7e+09
vllm:num_requests_running{engine="0",model_name="policy"} 3.0
"""


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def exits(code: int) -> list[str]:
    return [sys.executable, "-c", f"import os; os._exit({code})"]


def test_the_server_ends_with_its_run_and_the_pod_completes() -> None:
    answers = iter(["", "", "final is complete"])
    assert serve(SERVER, lambda: next(answers), poll_seconds=0.01) == 0


def test_a_container_that_starts_after_the_run_has_ended_starts_no_server() -> None:
    assert serve(["/nowhere/vllm"], lambda: "final is complete") == 0


@pytest.mark.parametrize(("code", "reported"), [(0, 1), (1, 1), (3, 3)])
def test_a_server_that_ends_by_itself_is_started_again(code: int, reported: int) -> None:
    """Whatever its own code: the Job would not start a completed index again."""
    assert serve(exits(code), lambda: "", poll_seconds=5.0) == reported


def test_a_killed_server_is_reported_as_by_a_shell() -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert serve(killed, lambda: "", poll_seconds=5.0) == 137


def test_an_evicted_pod_ends_its_server_and_does_not_complete(tmp_path: Path) -> None:
    """A server that ends properly has code 0; the pod must be replaced nevertheless."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["X"]}')
    script = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); "
        "sys.stdout.write(f'{os.getpid()}\\n'); sys.stdout.flush(); time.sleep(600)"
    )
    command = [sys.executable, "-m", "services.trainer.runs.serve_engine", "--run", str(tmp_path), "--idle-seconds"]
    command += ["600", "--model", str(tmp_path / "model"), "--port", "1", "--metrics-port", "0"]
    command += ["--", sys.executable, "-c", script]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pod = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert pod.stdout is not None
    server = int(pod.stdout.readline())
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def final_model(run: Path, step: int) -> None:
    (run / "final").mkdir(parents=True, exist_ok=True)
    (run / "final" / "weights").write_text("x")
    write_artifact(run / "final", Artifact("model", metadata={"step": step}))


def test_a_run_is_over_once_it_has_a_new_final_model(tmp_path: Path) -> None:
    last_call = LastCall(tmp_path / "last_call", lambda: None)
    is_over = find_end(tmp_path, last_call, 600.0)
    assert not is_over()
    final_model(tmp_path, 4)
    assert "final is complete" in is_over()
    further = find_end(tmp_path, last_call, 600.0)
    assert not further(), "the run is trained further: this is the model of its earlier end"
    final_model(tmp_path, 6)
    assert "final is complete" in further()


def test_a_run_without_a_trainer_is_over_after_a_while(tmp_path: Path) -> None:
    clock, count = Clock(), 0.0
    last_call = LastCall(tmp_path / "last_call", lambda: count, clock)
    is_over = find_end(tmp_path, last_call, 600.0)
    clock.seconds += 500
    count = 7.0
    assert not is_over(), "it was called"
    clock.seconds += 500
    assert not is_over()
    clock.seconds += 200
    assert is_over() == "no trainer has called for 600 s"


def test_a_server_that_crashes_at_each_start_is_idle_too(tmp_path: Path) -> None:
    clock = Clock()
    LastCall(tmp_path / "last_call", lambda: None, clock)
    clock.seconds += 400
    restarted = LastCall(tmp_path / "last_call", lambda: None, clock)
    clock.seconds += 300
    assert restarted.idle_seconds() == 700
    again = LastCall(tmp_path / "last_call", lambda: 2.0, clock)
    assert again.idle_seconds() == 0, "the new server has answered"


@pytest.fixture
def metrics_url() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep the output of the tests free of requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def test_the_requests_of_every_route_are_counted(metrics_url: str) -> None:
    assert count_requests(metrics_url) == 8.0
    assert count_requests(re.sub(r":\d+/", ":1/", metrics_url)) is None


def test_scrapers_reach_the_metrics_and_no_other_route(metrics_url: str) -> None:
    with relay_metrics(metrics_url, 0) as port:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        assert page.text == PAGE and page.headers["content-type"].startswith("text/plain")
        for path in ("/update_weights", "/weight_info", "/"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 404
        assert httpx.post(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 501


@pytest.mark.parametrize(
    ("headers", "expected"),
    [("Content-Length: 4000\r\n", None), ("Transfer-Encoding: chunked\r\n", None), ("", 5.0), ("X\r\n" * 200, None)],
)
def test_a_page_that_breaks_off_ends_nothing_and_counts_no_half_number(headers: str, expected: float | None) -> None:
    page = f"HTTP/1.1 200 OK\r\n{headers}\r\n{PAGE[: PAGE.index(' 2.0') + 3]}"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(page.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        assert count_requests(f"http://127.0.0.1:{listening.getsockname()[1]}/metrics") == expected
        thread.join(30)


def test_a_scraper_learns_that_the_server_does_not_answer() -> None:
    with relay_metrics("http://127.0.0.1:1/metrics", 0) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 503


def test_flags_follow_from_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}')
    assert model_flags(tmp_path) == []
    (tmp_path / "searcher.json").write_text(SearcherProfile().to_json())
    assert model_flags(tmp_path) == ["--max-model-len", str(SearcherProfile().limits.max_context_tokens)]
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert model_flags(tmp_path)[-2:] == ["--hf-overrides", json.dumps({"architectures": ["Qwen3ForCausalLM"]})]


@pytest.mark.parametrize(
    ("config", "sentence"), [(None, "no config.json"), ('{"model_type": "mamba"}', 'names no "architectures"')]
)
def test_a_model_that_cannot_be_served_is_refused(tmp_path: Path, config: str | None, sentence: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigurationError, match=sentence):
        model_flags(tmp_path)


def test_the_architectures_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    assert {kind: NAMES[kind] for kind in ARCHITECTURES} == ARCHITECTURES
