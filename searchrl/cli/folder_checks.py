"""Checks the services that ``up`` runs in a folder, and the Redis behind their retriever."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx

from searchrl.cli.commands.status import PROBE_SECONDS, probe
from searchrl.local.instance import Instance
from searchrl.platform.findings import Finding, FindingState
from searchrl.platform.settings import read_yaml

_REDIS_METRIC = re.compile(r"^searchrl_retriever_redis_available (\S+)$", re.MULTILINE)


def check_folder(folder: Path) -> Iterator[Finding]:
    """Yield a finding per service; none if nothing runs."""
    instance = Instance.read(folder)
    if instance is None or not instance.is_alive:
        return
    services = probe(instance.services)
    for name, record in services.items():
        state = FindingState.OK if record.is_fine else FindingState.FAILED
        found = record.grpc if record.exit_code is None else f"exit code {record.exit_code}"
        yield Finding(f"up: {name}", state, f"{record.state}, {found}", "" if record.is_fine else f"see {record.log}")
    retriever = services.get("retriever")
    if retriever is not None and retriever.http and _uses_redis(folder):
        yield _redis(retriever.http)


def _uses_redis(folder: Path) -> bool:
    path = folder / "config" / "retriever.yaml"
    return path.is_file() and bool(read_yaml(path).get("cache", {}).get("redis_url"))


def _redis(address: str) -> Finding:
    """Check, by the retriever's metrics, whether the retriever reaches Redis."""
    try:
        # The retriever is asked, not Redis: only its view counts, with its address, its password and its network.
        text = httpx.get(f"http://{address}/metrics", timeout=PROBE_SECONDS, trust_env=False).text
    except httpx.HTTPError as error:
        return Finding("redis", FindingState.WARNING, f"the retriever does not report it: {error}", "searchrl status")
    value = _REDIS_METRIC.search(text)
    if value is not None and float(value[1]) == 1:
        return Finding("redis", FindingState.OK, "the retriever reaches it")
    advice = "start it, or correct retriever.cache.redis_url"
    return Finding("redis", FindingState.WARNING, "not reached: searches work, and are slower", advice)
