"""Starts the evaluator: ``python -m services.evaluator``. Settings come from the environment."""

from searchrl.platform.server.serve import ServiceSpec, run_service
from services.evaluator.settings import EvaluatorSettings


def build(settings: EvaluatorSettings) -> ServiceSpec:
    from services.evaluator.wiring import build_spec  # heavy imports wait for valid settings

    return build_spec(settings)


def main() -> None:
    run_service(EvaluatorSettings.from_environment, build, "evaluator")


if __name__ == "__main__":
    main()
