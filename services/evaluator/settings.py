"""Defines the settings of the evaluator."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SecretStr
from pydantic_settings import SettingsConfigDict

from searchrl.platform.service_settings import ServiceSettings
from services.evaluator.store.journal import Journal


class Target(BaseModel):
    """Where another service listens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(default="", description="host:port of its gRPC server.")
    key: SecretStr | None = Field(default=None, description="API key, if the service requires one.")
    timeout_seconds: float = Field(default=120.0, gt=0, description="Time one call may take.")


class RunLimits(BaseModel):
    """How runs are driven."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_concurrency: PositiveInt = Field(default=8, description="Concurrent episodes if a run names no number.")
    max_concurrency: PositiveInt = Field(
        default=64, description="Limit of concurrent episodes, whatever a run requests."
    )
    # With the pauses of ``EPISODE_RETRIES``, five attempts span 3.75 seconds or more; the next pass covers longer
    # outages.
    attempts: PositiveInt = Field(default=5, description="Tries of one call that fails for infrastructure reasons.")
    # The second pass comes after all other questions, when a short outage is over; a longer one leaves the run
    # incomplete.
    passes: PositiveInt = Field(default=2, description="How often a run goes over what an outage cost it.")
    # A dozen rounds of eight episodes at once, each tried five times: the service is down, not one of its answers.
    max_consecutive_failures: PositiveInt = Field(
        default=100, description="Failures of infrastructure in a row that end a run; it can be continued."
    )
    # With more refusals, the mean would be that of another set of questions.
    max_refused_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Share of a method's questions that may be refused for good."
    )


class EvaluatorSettings(ServiceSettings):
    """Settings of the evaluator; environment variables start with EVALUATOR_."""

    model_config = SettingsConfigDict(env_prefix="EVALUATOR_")

    store: Path = Field(default=Path("runs/evaluator/results.sqlite"), description="File that keeps every result.")
    journal: Journal = Field(
        default=Journal.AUTO,
        description="wal, rollback, or auto: wal on a file system known to be local; it is unsafe on a network's.",
    )
    questions_dir: Path | None = Field(
        default=None, description="Only question files in this folder may be named; unset: none."
    )
    generator: Target = Field(default=Target(target="127.0.0.1:9091"), description="The generator service.")
    retriever: Target = Field(
        default=Target(timeout_seconds=30), description="The retriever, for controls; empty target: without it."
    )
    runs: RunLimits = Field(default=RunLimits(), description="How runs are driven.")
