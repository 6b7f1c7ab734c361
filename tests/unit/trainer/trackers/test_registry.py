"""The trackers that a run names: one or several, each once, with the settings of theirs alone."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from searchrl.errors import ConfigurationError
from services.trainer.trackers.base import TrackerContext
from services.trainer.trackers.build import TrackerSettings, build_trackers


def test_one_name_is_a_list_of_one_and_a_name_counts_once() -> None:
    assert TrackerSettings().trackers == ("tensorboard",)
    assert TrackerSettings.model_validate({"trackers": "mlflow"}).trackers == ("mlflow",)
    assert TrackerSettings.model_validate({"trackers": ["mlflow", "mlflow"]}).trackers == ("mlflow",)
    with pytest.raises(ValidationError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        TrackerSettings.model_validate({"trackers": ["tensorbord"]})


def test_settings_of_a_tracker_that_is_not_named_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = TrackerSettings.model_validate({"trackers": [], "wandb": {"mode": "offline"}})
    assert build_trackers(settings, TrackerContext("first", tmp_path, {})) == []
    assert caplog.messages == ["logging.wandb has no effect: logging.trackers does not name wandb"]


def test_the_trackers_are_built_in_order_and_one_that_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    context = TrackerContext("first", tmp_path, {})
    both = TrackerSettings.model_validate(
        {"trackers": ["mlflow", "tensorboard"], "mlflow": {"address": "http://127.0.0.1:9"}}
    )
    assert [thread.name for thread in build_trackers(both, context)] == ["mlflow", "tensorboard"]
    with pytest.raises(ConfigurationError, match=r"logging\.mlflow\.address"):
        build_trackers(TrackerSettings(trackers=("mlflow",)), context)
    assert not list(tmp_path.iterdir())  # nothing was opened
