"""Adds the log-probabilities of the frozen reference policy to rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from services.trainer.learner.model_folder import load_model
from services.trainer.learner.policy_scoring import compute_logprobs
from services.trainer.learner.settings import LearnerSettings
from services.trainer.learner.train_batch import TrainRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReferencePolicy:
    """A policy that is never trained: the one that the run started from, for the KL term."""

    def __init__(self, model: "PreTrainedModel", settings: LearnerSettings) -> None:
        model.requires_grad_(False)
        self._model = model
        self._settings = settings

    @classmethod
    def from_folder(cls, folder: Path, settings: LearnerSettings) -> Self:
        """Load a Hugging Face folder.

        Raises:
            searchrl.errors.ConfigurationError: the folder or the device cannot be used.
        """
        return cls(load_model(folder, settings), settings)

    def annotate(self, rows: Sequence[TrainRow]) -> list[TrainRow]:
        """Return the rows with ``reference_logprobs``."""
        arrays = compute_logprobs(self._model, rows, self._settings)
        return [replace(row, reference_logprobs=array) for row, array in zip(rows, arrays, strict=True)]
