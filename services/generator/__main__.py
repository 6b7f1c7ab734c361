"""Starts the generator: ``python -m services.generator``. Settings come from the environment."""

from searchrl.platform.server.serve import ServiceSpec, run_service
from services.generator.settings import GeneratorSettings


def build(settings: GeneratorSettings) -> ServiceSpec:
    from services.generator.wiring import build_service, service_spec  # heavy imports wait for valid settings

    return service_spec(build_service(settings), settings)


def main() -> None:
    run_service(GeneratorSettings.from_environment, build, "generator")


if __name__ == "__main__":
    main()
