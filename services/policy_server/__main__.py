"""Starts the policy server: ``python -m services.policy_server --model DIR --port 8000``."""

from collections.abc import Sequence

from searchrl.platform.server.serve import ServiceSpec, run_service
from services.policy_server.settings import PolicyServerSettings, read_settings


def build(settings: PolicyServerSettings) -> ServiceSpec:
    from services.policy_server.wiring import build_spec  # heavy imports wait for valid settings

    return build_spec(settings)


def main(argv: Sequence[str] | None = None) -> None:
    run_service(lambda: read_settings(argv), build, "policy-server")


if __name__ == "__main__":
    main()
