"""Defines the settings of the policy server, and reads them from flags, ``--set`` and the environment."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveInt
from pydantic_settings import SettingsConfigDict

from searchrl.platform.settings import ServiceSettings


class PolicyServerSettings(ServiceSettings):
    """Which model is served, and where."""

    model_config = SettingsConfigDict(env_prefix="POLICY_SERVER_")

    model: Path = Field(description="Model folder.")
    name: str = Field(default="", description="The model's name in requests; empty: the folder's name.")
    slots: PositiveInt = Field(default=256, description="Rollouts whose cache is kept, and rows decoded at once.")
    threads: PositiveInt = Field(default=1, description="Threads of torch.")


def read_settings(argv: Sequence[str] | None) -> PolicyServerSettings:
    """Read the settings from short flags for the common ones, ``--set`` and the environment.

    Raises:
        ConfigurationError: a name is unknown, or a value cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m services.policy_server", description=PolicyServerSettings.__doc__)
    parser.add_argument("--model", type=Path, help="model folder with config, weights and tokenizer.json")
    parser.add_argument("--port", type=int, help="HTTP port; 0 lets the system choose")
    parser.add_argument("--ready-file", type=Path, help="written with the chosen ports once ready")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    arguments = parser.parse_args(argv)
    flags = {
        "model": arguments.model,
        "ready_file": arguments.ready_file,
        "listen.http_port": arguments.port,
        # with --port, gRPC (probes only) takes a free port, so that two servers on one machine do not collide
        "listen.grpc_port": None if arguments.port is None else 0,
    }
    given = [f"--set={name}={value}" for name, value in flags.items() if value is not None]
    return PolicyServerSettings.from_environment([*given, *(f"--set={text}" for text in arguments.set)])
