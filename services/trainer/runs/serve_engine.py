"""Serve a run's rollouts until the run is over: ``serve_engine --run DIR --model DIR -- vllm serve DIR ...``.

The main process of an engine's pod, in the image that has vLLM and no trainer, so it imports nothing of either. Nobody
deletes the pod when training ends: this program ends vLLM and itself, which frees the GPU, as soon as

- the run has a new final model, or
- no trainer has called for ``--idle-seconds``: it has failed for good, or waits in vain for a machine.

It exits with 0 only then, because a Job never starts a completed index again. Beside that it serves vLLM's metrics at a
port of their own: whoever may read them must not reach the routes that replace weights.
"""

import argparse
import contextlib
import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.errors import ConfigurationError
from searchrl.platform.processes import SIGTERM_EXIT, Interrupted, exit_on_sigterm, write_termination_message
from searchrl.platform.telemetry.logging_setup import set_up_logging
from searchrl.storage.artifact_manifest import MANIFEST_FILE
from searchrl.tokenization.model_files import read_json
from services.trainer.runs.run_folder import FINAL

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0  # a pod outlives its run by so long
METRICS_SECONDS = 5.0  # limit of one look at vLLM's metrics; a busy server is looked at again
KILL_SECONDS = 15.0
"""From SIGTERM to SIGKILL of vLLM. It ends within its --shutdown-timeout, and the pod has 30 s in all."""
FAILED = 1
UNUSABLE = 2
LAST_CALL = "last_call.json"
"""In the pod's folder for temporary files, which its container's restarts leave: a server that crashes at each start is
idle, too."""
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Of models whose ``config.json`` names none, such as the small world's: vLLM would take them for encoders."""
_REQUESTS = re.compile(r"^http_requests_total\{.*\} (\S+)\n", re.MULTILINE)  # a line that breaks off has no end


class LastCall:
    """Remembers when the server was called last, also while vLLM or this program is started again.

    vLLM counts requests by route, without probes (/health) and its metrics themselves. A trainer calls every server
    each few seconds, even while it samples nothing.
    """

    def __init__(self, file: Path, count: Callable[[], float | None], now: Callable[[], float] = time.time) -> None:
        self._file = file
        self._count = count
        self._now = now
        self._seen = 0.0  # a server that has just started has answered nobody
        try:
            self._at = float(json.loads(file.read_text(encoding="utf-8"))["at"])
        except (OSError, ValueError, KeyError, TypeError):
            self._note()

    def idle_seconds(self) -> float:
        """Return the time since the last call, or since the pod's first start."""
        count = self._count()
        # None: it is still starting, or busy. It did not count down either, so nothing is known to have changed.
        if count is not None and count != self._seen:
            self._seen = count
            self._note()
        return self._now() - self._at

    def _note(self) -> None:
        self._at = self._now()
        self._file.write_text(json.dumps({"at": self._at}), encoding="utf-8")


def read_metrics(url: str) -> str | None:
    """Return the server's page of metrics; None if it does not answer now, or breaks off."""
    try:
        # An empty proxy handler: the server is in this pod, whatever proxy the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=METRICS_SECONDS) as answer:
            return answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None


def count_requests(url: str) -> float | None:
    """Return how many requests the server has answered; None if it does not say so now."""
    page = read_metrics(url)
    return None if page is None else sum(map(float, _REQUESTS.findall(page)))


@contextlib.contextmanager
def relay_metrics(url: str, port: int) -> Iterator[int]:
    """Serve the page at ``url``, and nothing else of that server, at a port, which is yielded; 0: any free one."""

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = read_metrics(url) if self.path == "/metrics" else None
            if page is None:
                self.send_error(503 if self.path == "/metrics" else 404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep scrapes out of the log."""

    relay = ThreadingHTTPServer(("", port), Relay)
    # A thread of its own, because the main one waits for vLLM; it ends with the process if nothing else ends it.
    threading.Thread(target=relay.serve_forever, name="metrics", daemon=True).start()
    try:
        yield relay.server_port
    finally:
        relay.shutdown()
        relay.server_close()


def model_flags(model: Path) -> list[str]:
    """Return the flags that follow from the model folder: the searcher's context, and an architecture.

    Raises:
        ConfigurationError: the folder holds no model that can be served.
    """
    config = read_json(model / "config.json")
    if not config:
        raise ConfigurationError(f"there is no config.json in {model}")
    flags: list[str] = []
    profile = model / PROFILE_FILE
    if profile.is_file():
        # The trainer asks for no more, and a KV cache must hold one request of the longest context.
        limits = SearcherProfile.from_json(profile.read_text(encoding="utf-8")).limits
        flags += ["--max-model-len", str(limits.max_context_tokens)]
    if not config.get("architectures"):
        kind = str(config.get("model_type"))
        if kind not in ARCHITECTURES:
            raise ConfigurationError(f'{model / "config.json"} names no "architectures": add it to serve this {kind}')
        flags += ["--hf-overrides", json.dumps({"architectures": [ARCHITECTURES[kind]]})]
    return flags


def serve(command: Sequence[str], is_over: Callable[[], str], poll_seconds: float = POLL_SECONDS) -> int:
    """Run the server until the run is over, it ends by itself, or SIGTERM; return this program's exit code.

    Args:
        is_over: returns why the run needs no engine any more; empty while it does.
    """
    if reason := is_over():  # a container that was started again after the run has ended
        logger.info("no server is started: %s", reason)
        return 0
    # A group of its own, so that vLLM's workers end with it; the kernel ends all of them with the container.
    server = subprocess.Popen(list(command), start_new_session=True)
    try:
        while True:
            try:
                code = server.wait(poll_seconds)
            except subprocess.TimeoutExpired:
                if reason := is_over():
                    logger.info("the server is stopped: %s", reason)
                    return 0
                continue
            logger.error("the server ended with code %d", code)
            # Never 0: the run continues, and needs the next start. Signals are reported as shells do: 137 for SIGKILL.
            return 128 - code if code < 0 else code or FAILED
    except Interrupted:
        return SIGTERM_EXIT
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and kill what is left of its group."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("the server did not end within %g s", KILL_SECONDS)
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    server.wait()


def find_end(run: Path, last_call: LastCall, idle_seconds: float) -> Callable[[], str]:
    """Return a function that says why the run needs no engine any more; empty while it does."""
    # Of an earlier end of the same run, which is now trained further. A manifest is written last.
    before = _read(run / FINAL / MANIFEST_FILE)

    def is_over() -> str:
        if (final := _read(run / FINAL / MANIFEST_FILE)) and final != before:
            return f"{run / FINAL} is complete"
        if last_call.idle_seconds() > idle_seconds:
            return f"no trainer has called for {idle_seconds:g} s"
        return ""

    return is_over


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # there is none, or shared storage replaces it right now: the next look finds it
        return b""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 the run is over, 2 the model cannot be served, 143 a signal ended the pod; else the server's."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.runs.serve_engine", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model that the server loads")
    parser.add_argument("--idle-seconds", type=float, required=True, help="time without a call that ends the server")
    parser.add_argument("--port", type=int, default=8000, help="port on which the server listens")
    parser.add_argument("--metrics-port", type=int, default=8080, help="port at which its metrics alone are served")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the server's command")
    arguments = parser.parse_args(argv)
    set_up_logging("serve_engine", "text")  # as vLLM's own lines, between which these stand
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    metrics = f"http://127.0.0.1:{arguments.port}/metrics"
    last_call = LastCall(Path(tempfile.gettempdir()) / LAST_CALL, lambda: count_requests(metrics))
    is_over = find_end(arguments.run, last_call, arguments.idle_seconds)
    try:
        with relay_metrics(metrics, arguments.metrics_port):
            return serve([*command, *model_flags(arguments.model)], is_over)
    except (ConfigurationError, OSError) as error:
        write_termination_message(f"serve_engine: {error}")
        return UNUSABLE


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
