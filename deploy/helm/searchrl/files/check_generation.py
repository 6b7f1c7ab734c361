"""Checks that the engine in this pod generates: one token of the model that it serves."""

import http.client
import json
import os
import sys

PORT = 8000  # the port on which the chart lets vLLM listen
# Shorter than the probe's own timeout, so that this file's message appears in the pod's events.
SECONDS = 25


def main(model: str) -> int:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    # vLLM's /health says that the engine is alive; one token shows that a request passes through the model.
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1})
    connection = http.client.HTTPConnection("localhost", PORT, timeout=SECONDS)
    try:
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except ConnectionRefusedError:
        sys.stderr.write("the engine does not listen yet\n")
        return 1
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"the engine did not generate: {error!r}\n")
        return 1
    finally:
        connection.close()
    if answer.status != http.client.OK:
        # The output of a failed probe becomes an event; a short one stays readable in kubectl describe.
        sys.stderr.write(f"the engine did not generate: HTTP {answer.status} {text[:300]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
