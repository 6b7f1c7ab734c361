"""Defines the settings of rewards."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

RewardKind = Literal["generation_accuracy", "gain_beyond_rag", "exact_match", "search_r1_format"]


class RewardSettings(BaseModel):
    """The kind of reward, its costs, and the number of its calls in flight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: RewardKind = Field(default="generation_accuracy", description="What counts as success.")
    document_cost: NonNegativeFloat = Field(default=0.05, description="Share of a success lost per selected document.")
    search_cost: NonNegativeFloat = Field(default=0.0, description="Share of a success lost per search.")
    malformed_penalty: NonNegativeFloat = Field(default=0.3, description="Subtracted if any turn broke the protocol.")
    gain_mode: Literal["utility", "generation", "both"] = Field(
        default="utility", description="gain_beyond_rag: how accuracy and naive RAG's accuracy combine."
    )
    baseline_file: Path | None = Field(default=None, description="gain_beyond_rag: naive RAG's results per question.")
    baseline_top_k: PositiveInt | None = Field(
        default=None,
        description="gain_beyond_rag: passages that naive RAG read; None: as many as the searcher is shown first.",
    )
    max_in_flight: PositiveInt = Field(default=64, description="Reward calls running at once.")

    @model_validator(mode="after")
    def _check_baseline(self) -> Self:
        if (self.kind == "gain_beyond_rag") != (self.baseline_file is not None):
            raise ValueError("baseline_file belongs to kind gain_beyond_rag, which cannot do without it")
        return self
