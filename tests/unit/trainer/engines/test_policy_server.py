"""Does a served model say how far it was trained?"""

from pathlib import Path

from searchrl.platform.artifact_manifest import Artifact, write_artifact
from services.trainer.engines.policy_server import trained_steps


def test_the_version_is_the_step_that_the_model_was_published_at(tmp_path: Path) -> None:
    write_artifact(tmp_path, Artifact("model", metadata={"step": 60}))
    assert trained_steps(tmp_path) == 60


def test_a_model_of_nobody_in_particular_has_version_0(tmp_path: Path) -> None:
    assert trained_steps(tmp_path) == 0
    write_artifact(tmp_path, Artifact("model"))
    assert trained_steps(tmp_path) == 0
