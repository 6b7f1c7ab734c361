"""A program that behaves like ``vllm serve`` toward a supervisor and starts immediately.

The last part of the model's name selects its behavior: "good", "crashes" (at start), "no-template" (refuses chats),
"silent" (never healthy), "stubborn" (ignores SIGTERM). ``POST /die`` ends the process with code 7.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = sys.argv[2].rpartition("/")[2]
HOST, PORT = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])

REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "stand-in",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Server(BaseHTTPRequestHandler):
    """The routes that a supervisor and a client call."""

    def do_GET(self) -> None:
        facts = {"environment": dict(os.environ), "arguments": sys.argv[1:], "pid": os.getpid(), "parent": os.getppid()}
        self._answer(503 if MODEL == "silent" else 200, facts)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/die":
            os._exit(7)
        if MODEL == "no-template":
            self._answer(400, {"error": {"message": "default chat template is no longer allowed", "type": "x"}})
        elif self.path == "/v1/completions":
            logprobs = {"token_logprobs": [-1.0]}
            self._answer(200, {"choices": [{"token_ids": [1], "logprobs": logprobs, "finish_reason": "length"}]})
        else:
            self._answer(200, REPLY)

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    if MODEL == "crashes":
        sys.stderr.write("INFO starting\nValueError: the model's weights are broken\n")
        sys.exit(3)
    if MODEL == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0), os._exit(0)))
    ThreadingHTTPServer((HOST, PORT), Server).serve_forever()
