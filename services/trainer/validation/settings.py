"""Defines the settings of the validation during a run."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from searchrl.platform.settings import Section


class ValidationSettings(Section):
    """On which questions the policy is validated, how often, and when that ends the run."""

    questions: Path | None = Field(default=None, description="Questions that are not trained on; None: no validation.")
    # About what a step costs: 200 questions are answered in the time of the 192 rollouts of a step with the default
    # sizes, so with 10 a validation adds a tenth at most.
    every: NonNegativeInt = Field(
        default=10, description="Steps between validations; 0: only at the start and at the end."
    )
    metric: Literal["success", "reward"] = Field(
        default="success", description="What the best version has the highest mean of; also compared with the start."
    )
    overlap: Literal["refuse", "warn"] = Field(
        default="refuse", description="What to do about questions that are also trained on."
    )
    baseline_file: Path | None = Field(
        default=None, description="Naive RAG's results for these questions; None: reward.baseline_file has them."
    )
    in_flight: PositiveInt | None = Field(
        default=None, description="Questions answered at once; None: as many as a step has rollouts."
    )
    patience: NonNegativeInt = Field(
        default=0, description="Validations in a row without an improvement that end the run; 0: any number."
    )
    min_improvement: NonNegativeFloat = Field(
        default=0.0, description="An improvement exceeds the last one by more than this."
    )

    @model_validator(mode="after")
    def _check_questions(self) -> Self:
        if self.questions is None and self != type(self).model_construct():
            raise ValueError("the settings of validation need validation.questions")
        return self
