"""Records what produced an answer: models, index generation, prompt and limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provenance:
    """The models, data and limits to which an answer, and every number computed from it, refers.

    Attributes:
        generator_model: as the engine names itself; empty if the searcher wrote the answer.
        searcher_model: empty without a searcher.
        searcher_version: every policy version that wrote a token, such as "v12" or "v12+v13".
        index_generations: those that served the answer, in the order seen; more than one if the index was swapped.
        mode: requested retrieval mode; empty for the index's default.
        top_k: passages per search; 0 without a search.
        template_hash: changes whenever the generator's prompt does.
        max_context_tokens: token budget of the documents in the prompt.
        max_answer_tokens: token budget of the answer.
        temperature: of the generator; the searcher's temperature is set per question.
    """

    generator_model: str = ""
    searcher_model: str = ""
    searcher_version: str = ""
    index_generations: tuple[str, ...] = ()
    mode: str = ""
    top_k: int = 0
    template_hash: str = ""
    max_context_tokens: int = 0
    max_answer_tokens: int = 0
    temperature: float = 0.0


UNKNOWN_PROVENANCE = Provenance()
"""Provenance of a record that does not state it."""
