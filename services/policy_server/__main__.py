"""Serves a tiny searcher: ``python -m services.policy_server --model DIR --port 8000``."""

import sys
from collections.abc import Sequence

from searchrl.errors import ConfigurationError
from searchrl.platform.termination_log import write_termination_message
from services.policy_server.settings import read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server; exit code 2 if the settings or the model cannot be used."""
    try:
        settings = read_settings(argv)
        # Imported here, so that --help and unusable settings do not wait for torch.
        from searchrl.platform.server.serve import run_on_fast_loop
        from searchrl.platform.telemetry.logging_setup import set_up_logging
        from searchrl.platform.telemetry.trace_export import set_up_tracing
        from services.policy_server.wiring import serve

        set_up_logging("policy_server", settings.log_format)
        set_up_tracing("policy-server", settings.traces_endpoint)
        run_on_fast_loop(serve(settings))
    except ConfigurationError as error:
        write_termination_message(f"policy_server: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
