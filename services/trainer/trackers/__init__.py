"""Shows the steps of a run elsewhere, beside ``metrics.jsonl`` and ``/metrics``; trackers by name, one file each."""

from collections.abc import Callable, Mapping
from typing import Any

from services.trainer.trackers.base import Tracker, TrackerContext
from services.trainer.trackers.mlflow import MlflowTracker
from services.trainer.trackers.tensorboard import TensorboardTracker
from services.trainer.trackers.wandb import WandbTracker

TRACKERS: Mapping[str, Callable[[Any, TrackerContext], Tracker]] = {
    "tensorboard": lambda _settings, context: TensorboardTracker(context),
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
"""Builder by name; its first argument is the section of ``TrackerSettings`` with this name, or None."""
