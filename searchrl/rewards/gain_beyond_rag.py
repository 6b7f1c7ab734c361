"""Computes Gain Beyond RAG: the value of a searcher's rollout compared with naive retrieval."""

from typing import Literal

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
