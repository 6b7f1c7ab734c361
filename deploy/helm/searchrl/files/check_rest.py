"""Checks the generator's REST API: probes, metrics, the list of methods, and the rejection of a wrong key."""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

BASE = os.environ["GENERATOR_URL"]
KEY = os.environ.get("CLIENT_KEY", "")
AUTHORITY = os.environ.get("SEARCHRL_TLS_AUTHORITY")
# The authority of the services' certificates need not be one that the system's store knows.
TLS = ssl.create_default_context(cafile=AUTHORITY) if AUTHORITY else None


def get(path: str, key: str = KEY) -> bytes:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(
        urllib.request.Request(BASE + path, headers=headers), timeout=30, context=TLS
    ) as answer:
        return answer.read()


def main() -> int:
    for path in ("/livez", "/readyz"):
        sys.stdout.write(f"{path}: {get(path).decode()}\n")
    if b"generator_" not in get("/metrics"):
        sys.stderr.write("/metrics has no metric of the generator\n")
        return 1
    methods = json.loads(get("/v1/methods"))
    sys.stdout.write(f"methods: {json.dumps(methods)}\n")
    # Without keys the services check none, so there is nothing to refuse.
    if not KEY:
        return 0
    try:
        get("/v1/methods", key="not-a-key")
    except urllib.error.HTTPError as error:
        return 0 if error.code == 401 else 1
    sys.stderr.write("a wrong key was accepted\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
