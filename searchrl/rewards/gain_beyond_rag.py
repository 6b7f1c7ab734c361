"""Computes Gain Beyond RAG, the value of a searcher's rollout compared with naive retrieval, and its reward."""

from dataclasses import dataclass
from typing import Literal

from searchrl.domain.trajectory import Reward, Trajectory

GainMode = Literal["utility", "generation", "both"]


def gain_beyond_rag(correct: bool, rag_correct: bool, mode: GainMode = "utility") -> float:
    """Return the reward of one rollout.

    ``correct`` is the generator's accuracy with the searcher's documents, ``rag_correct`` with those of naive RAG.

    | correct | naive RAG correct | utility | generation | both |
    |---|---|---|---|---|
    | yes | no  |  1 | 1 |  2 |
    | yes | yes |  0 | 1 |  1 |
    | no  | no  |  0 | 0 |  0 |
    | no  | yes | -1 | 0 | -1 |

    "both" is the sum that s3's code computes; "utility" is Gain Beyond RAG as defined in its paper. On questions that
    naive RAG gets wrong, the only ones s3 trains on, "both" is twice "generation".
    """
    utility = float(correct) - float(rag_correct)
    generation = float(correct)
    match mode:
        case "utility":
            return utility
        case "generation":
            return generation
        case "both":
            return utility + generation


@dataclass(frozen=True, slots=True)
class RolloutReward:
    """``value = gain x (1 - document_cost x documents - search_cost x searches) - malformed_penalty``.

    Costs are charged on a positive gain only, and never turn it negative: charged on failures they teach a searcher to
    give up. The penalty is charged whenever a turn broke the protocol. Example: a gain of 1 with 3 documents at a cost
    of 0.02 each and 2 searches at 0.05 each is worth 1 - 0.06 - 0.10 = 0.84.

    Attributes:
        mode: see ``gain_beyond_rag``.
        document_cost: share of the gain lost per document that reaches the generator.
        search_cost: share of the gain lost per query.
        malformed_penalty: subtracted once from a rollout that is not well formed.
    """

    mode: GainMode = "utility"
    document_cost: float = 0.0
    search_cost: float = 0.0
    malformed_penalty: float = 0.0

    def score(self, trajectory: Trajectory, correct: bool, rag_correct: bool) -> Reward:
        """Return the reward and its parts: correct, rag_correct, gain, cost, malformed."""
        gain = gain_beyond_rag(correct, rag_correct, self.mode)
        # The cap of 1 keeps a long but successful rollout at a gain of 0, never below a failed one.
        share = self.document_cost * len(trajectory.documents) + self.search_cost * trajectory.searches
        cost = max(gain, 0.0) * min(share, 1.0)
        penalty = 0.0 if trajectory.well_formed else self.malformed_penalty
        parts = {
            "correct": float(correct),
            "rag_correct": float(rag_correct),
            "gain": gain,
            "cost": -cost,
            "malformed": -penalty,
        }
        return Reward(gain - cost - penalty, parts)
