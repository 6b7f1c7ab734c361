"""Chooses the service that a command calls: the one it names, else the one that ``up`` started in the folder."""

import argparse
from pathlib import Path

from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError
from searchrl.local.instance import DEFAULT_FOLDER, running_instance


def add_target_arguments(parser: CommandParser, service: str) -> None:
    """Add ``--folder``, ``--<service>`` and ``--key``."""
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help=f"where 'up' runs (default {DEFAULT_FOLDER})"
    )
    parser.add_argument(f"--{service}", metavar="HOST:PORT", help=f"gRPC address of another {service}")
    parser.add_argument("--key", help="API key, if the service requires one")


def target_of(arguments: argparse.Namespace, service: str) -> str:
    """Return "host:port" of the service's gRPC server.

    Raises:
        ConfigurationError: none was named, and none is ready in the folder.
    """
    named = getattr(arguments, service)
    if named:
        return str(named)
    record = running_instance(arguments.folder).services.get(service)
    if record is None or not record.grpc:
        raise ConfigurationError(f"no {service} is ready in {arguments.folder}; see 'searchrl status'")
    return record.grpc
