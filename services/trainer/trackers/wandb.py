"""Shows a run in Weights & Biases, online or as files for ``wandb sync``: numbers, and a table of trajectories."""

import contextlib
import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from services.trainer.trackers.base import (
    SAMPLE_COLUMNS,
    RunEnd,
    TrackedStep,
    TrackerContext,
    check_address,
    read_secret,
)

KEY_VARIABLE = "WANDB_API_KEY"
ADDRESS_VARIABLE = "WANDB_BASE_URL"
INIT_SECONDS = 30.0
"""Longest time of a start, and of the exit of a process whose server answers nothing."""
FINISH_SECONDS = 10.0
"""Longest time of the upload at the end; shorter than ``CLOSE_SECONDS`` of the thread, so that it is reported."""


class WandbSettings(Section):
    """Where Weights & Biases shows the run."""

    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: only write files, which `wandb sync` sends later."
    )
    project: str = Field(default="searchrl", min_length=1, description="Project of the run.")
    entity: str = Field(default="", description="User or team of the project; empty: the key's default.")
    address: str = Field(default="", description="Address of an own server; empty: WANDB_BASE_URL, or W&B's.")
    key_file: Path | None = Field(default=None, description="File with the API key; None: WANDB_API_KEY.")

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return check_address(value, "logging.wandb.address")


class WandbTracker:
    """Writes one W&B run, which a resumed run continues."""

    def __init__(self, settings: WandbSettings, context: TrackerContext) -> None:
        if find_spec("wandb") is None:
            raise ConfigurationError(
                "logging.trackers names wandb, and the package wandb is not installed: pip install 'searchrl[wandb]'"
            )
        try:
            check_address(os.environ.get(ADDRESS_VARIABLE, ""), ADDRESS_VARIABLE)  # the library's errors would show it
        except ValueError as error:
            raise ConfigurationError(f"logging.trackers names wandb: {error}") from error
        self._key = read_secret(settings.key_file, "logging.wandb.key_file") or os.environ.get(KEY_VARIABLE)
        if settings.mode == "online" and not self._key:
            # Without a key the library would ask for one on the terminal, in the middle of the run's output.
            raise ConfigurationError(
                f"logging.trackers names wandb, and there is no key: set {KEY_VARIABLE} or logging.wandb.key_file, or "
                "logging.wandb.mode to offline"
            )
        self._settings = settings
        self._context = context
        self._kept = context.kept_run("wandb")
        self._run: Any = None

    def open(self, after_step: int) -> None:
        """See ``Tracker``."""
        # Otherwise the library reports its own errors to its maker, with parts of what it was called with.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # takes a second to import

        if self._run is not None:
            with contextlib.suppress(Exception):  # it has failed already
                self._run.finish(exit_code=1)
        if self._kept.id is None:
            self._kept.start(secrets.token_hex(4))  # before the run exists: a kill in between must not make a second
        settings = self._settings
        # The key is given to this run alone: the library's login function would write it into a file of the user, and
        # programs that the trainer starts later, such as vLLM, would inherit a variable of the environment.
        own = {"base_url": settings.address, "api_key": self._key}
        self._run = wandb.init(
            id=self._kept.id,
            resume="allow",
            reinit="create_new",  # otherwise, after a failure, the library would return the run that failed
            mode=settings.mode,
            project=settings.project,
            entity=settings.entity or None,
            name=self._context.name,
            config=dict(self._context.config),
            dir=str(self._context.folder / "trackers"),
            settings=wandb.Settings(
                **{name: value for name, value in own.items() if value},
                # The library waits for its server when the process exits, too, for as long as this.
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                console="off",  # the library would replace the streams of the process and send the logs
                silent=True,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
            ),
        )
        # The library's own steps only increase, but the validation of a step follows those that ran beside it.
        self._run.define_metric("*", step_metric="step")

    def record(self, step: TrackedStep) -> None:
        """See ``Tracker``."""
        if not self._kept.take(step):
            return
        import wandb

        values: dict[str, Any] = {"step": step.step, **step.numbers}
        if step.samples:
            values["samples"] = wandb.Table(columns=list(SAMPLE_COLUMNS), data=step.rows)
        self._run.log(values, commit=True)  # otherwise a step would be sent with the next one

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``."""
        self._run.finish(exit_code=1 if end is RunEnd.FAILED else 0)
