"""Start the generator: ``python -m services.generator``."""

from searchrl.platform.server_runner import run_service
from services.generator.settings import GeneratorSettings


async def serve(settings: GeneratorSettings) -> None:
    from searchrl.platform.server_runner import run_servers  # heavy imports wait for valid settings
    from services.generator import wiring

    service = wiring.build_service(settings)
    await run_servers(
        wiring.build_grpc_server(service, settings),  # must be created inside the running event loop
        wiring.build_http_app(service, settings),
        settings=settings,
        health=service.health,
        start=service.start,
        drain=service.stop,
    )


def main() -> None:
    run_service(GeneratorSettings, serve, "generator")


if __name__ == "__main__":
    main()
