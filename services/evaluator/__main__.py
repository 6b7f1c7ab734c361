"""Starts the evaluator: ``python -m services.evaluator``. Settings come from the environment."""

from searchrl.platform.server_runner import run_service
from services.evaluator.settings import EvaluatorSettings


async def serve(settings: EvaluatorSettings) -> None:
    """Serve both transports until SIGTERM or SIGINT; runs that were in progress continue at start."""
    from searchrl.platform.auth import KeyRing  # heavy imports wait for valid settings
    from searchrl.platform.health import Health
    from searchrl.platform.server_runner import run_servers
    from services.evaluator import wiring
    from services.evaluator.metrics import EvaluatorMetrics

    metrics = EvaluatorMetrics()
    health = Health()
    keys = KeyRing.from_file(settings.auth_keys_file)
    parts = wiring.build_parts(settings, metrics, health=health)
    service = parts.service

    async def drain() -> None:
        await service.stop()
        await parts.close_clients()

    # At the start of draining, not at its end: watches are open calls, which the servers would otherwise wait for.
    health.subscribe(lambda ready: service.begin_stop() if health.draining else None)
    await run_servers(
        wiring.build_grpc_server(service, keys, health, metrics),
        wiring.build_http_app(service, keys, health, metrics),
        settings=settings,
        health=health,
        start=service.start,
        drain=drain,
    )


def main() -> None:
    run_service(EvaluatorSettings, serve, "evaluator")


if __name__ == "__main__":
    main()
