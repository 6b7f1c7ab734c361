"""Starts the retriever: ``python -m services.retriever``. Settings come from the environment."""

from searchrl.platform.server.serve import ServiceSpec, run_service
from services.retriever.settings import RetrieverSettings


def build(settings: RetrieverSettings) -> ServiceSpec:
    from services.retriever.wiring import build_spec  # heavy imports wait for valid settings

    return build_spec(settings)


def main() -> None:
    run_service(RetrieverSettings.from_environment, build, "retriever")


if __name__ == "__main__":
    main()
