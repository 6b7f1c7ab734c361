"""Defines the settings of the evaluator."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from searchrl.platform.settings import Section, ServiceSettings
from services.evaluator.runs.run_executor import RunSettings
from services.evaluator.store.journal import Journal


class Target(Section):
    """Where another service listens."""

    target: str = Field(default="", description="host:port of its gRPC server.")
    key: SecretStr | None = Field(default=None, description="API key, if the service requires one.")
    # As long as the generator's own limit of one answer (limits.answer_seconds): a shorter one would end answers for
    # which the generator has time left.
    timeout_seconds: float = Field(default=120.0, gt=0, description="Time one call may take.")


class EvaluatorSettings(ServiceSettings):
    """Settings of the evaluator; environment variables start with EVALUATOR_."""

    model_config = SettingsConfigDict(env_prefix="EVALUATOR_")

    store: Path = Field(default=Path("runs/evaluator/results.sqlite"), description="File that keeps every result.")
    journal: Journal = Field(
        default=Journal.AUTO,
        description=(
            "wal, rollback, or auto: wal on a file system known to be local; wal is unsafe on a network file system."
        ),
    )
    questions_dir: Path | None = Field(
        default=None, description="Folder of the question files that a request may name; unset: none."
    )
    generator: Target = Field(default=Target(target="127.0.0.1:9091"), description="The generator service.")
    retriever: Target = Field(
        default=Target(timeout_seconds=30), description="The retriever, for controls; empty target: not used."
    )
    runs: RunSettings = Field(default=RunSettings(), description="How runs are executed.")
