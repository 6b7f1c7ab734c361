"""Defines the settings of all trackers, and builds those that a run names."""

import logging
from collections.abc import Callable
from typing import Any

from pydantic import Field, field_validator

from searchrl.errors import unknown_name
from searchrl.platform.settings import Section
from services.trainer.trackers import TRACKERS
from services.trainer.trackers.base import TrackerContext
from services.trainer.trackers.mlflow import MlflowSettings
from services.trainer.trackers.tracker_thread import TrackerThread
from services.trainer.trackers.wandb import WandbSettings

logger = logging.getLogger(__name__)


class TrackerSettings(Section):
    """Which trackers show the run, besides ``metrics.jsonl``."""

    trackers: tuple[str, ...] = Field(
        default=("tensorboard",), description="Any of tensorboard, wandb and mlflow; empty: none."
    )
    wandb: WandbSettings = Field(default=WandbSettings(), description="Weights & Biases.")
    mlflow: MlflowSettings = Field(default=MlflowSettings(), description="MLflow.")

    @field_validator("trackers", mode="before")
    @classmethod
    def _accept_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in TRACKERS:
                raise ValueError(unknown_name("tracker", name, TRACKERS))
        return tuple(dict.fromkeys(value))

    def list_unused(self) -> list[str]:
        """Return the trackers that have settings and are not named."""
        fields = type(self).model_fields
        others = [name for name in TRACKERS if name in fields and name not in self.trackers]
        # compared with the default, since run.yaml of a resumed run names every setting
        return [name for name in others if getattr(self, name) != fields[name].default]


def build_trackers(
    settings: TrackerSettings, context: TrackerContext, count_lost: Callable[[str], object] = lambda _name: None
) -> list[TrackerThread]:
    """Build the trackers of a run; nothing starts yet.

    Args:
        count_lost: called with the tracker's name for each step that it loses.

    Raises:
        ConfigurationError: one lacks its library, its key or its address.
    """

    def build(name: str) -> TrackerThread:
        tracker = TRACKERS[name](getattr(settings, name, None), context)
        return TrackerThread(name, tracker, count_lost=lambda: count_lost(name))

    # Not refused: a resumed run may leave out a tracker that its run.yaml describes.
    for name in settings.list_unused():
        logger.warning("logging.%s has no effect: logging.trackers does not name %s", name, name)
    return [build(name) for name in settings.trackers]
