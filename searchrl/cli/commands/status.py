"""Command that shows which services run in a folder, and whether they are ready."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
from rich.console import Console

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError
from searchrl.local.instance import DEFAULT_FOLDER, Instance, ServiceRecord
from searchrl.local.service_table import call_lines, service_table

PROBE_SECONDS = 3.0  # a service on this machine answers a probe at once, unless it hangs


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default {DEFAULT_FOLDER}")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 if every service reports that it is ready and every job is running or done, else 1."""
    instance = Instance.read(arguments.folder)
    if instance is None:
        raise ConfigurationError(f"nothing was started in {arguments.folder}; start it with 'searchrl up'")
    alive = instance.is_alive
    # A supervisor that was killed could not write "stopped", so its last record still says "ready".
    state = instance.state if alive else "died" if instance.state != "stopped" else "stopped"
    services = probe(instance.services) if alive else instance.services
    if arguments.json:
        rows = {name: dataclasses.asdict(record) for name, record in services.items()}
        shown = {"state": state, "folder": instance.folder, "inputs": dict(instance.inputs), "services": rows}
        sys.stdout.write(json.dumps({**shown, "version": instance.searchrl_version}, indent=2) + "\n")
    else:
        _show(state, instance, services)
    return 0 if alive and services and all(record.is_fine for record in services.values()) else 1


def probe(services: Mapping[str, ServiceRecord]) -> dict[str, ServiceRecord]:
    """Return the same records with the current answer of ``/readyz`` as state."""
    found: dict[str, ServiceRecord] = {}
    # Without the proxy of the environment, which cannot reach this machine's loopback address.
    with httpx.Client(trust_env=False, timeout=PROBE_SECONDS) as client:
        for name, record in services.items():
            found[name] = dataclasses.replace(record, state=_state(client, record))
    return found


def _state(client: httpx.Client, record: ServiceRecord) -> str:
    if not record.http:
        return record.state
    try:
        answer = client.get(f"http://{record.http}/readyz")
    except httpx.HTTPError:
        return "not answering"
    return "ready" if answer.status_code == 200 else "not ready"


def _show(state: str, instance: Instance, services: Mapping[str, ServiceRecord]) -> None:
    console = Console()
    if state in ("died", "stopped"):
        console.print(f"nothing is running in {instance.folder}: it {'was stopped' if state == 'stopped' else 'died'}")
        return
    console.print(service_table(services, f"{state}, in {instance.folder}"))
    console.print()
    for line in call_lines(services, has_keys="keys" in instance.inputs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
