"""What made an answer: models, index generation, prompt and limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an answer, and every number computed from it, refers to.

    Attributes:
        generator_model: as the engine names itself; empty where the searcher wrote the answer.
        searcher_model: empty without a searcher.
        searcher_version: every policy version that wrote a token, such as "v12" or "v12+v13".
        index_generations: those that served the answer, in the order seen; more than one if the index was swapped.
        mode: retrieval mode asked for; empty for the index's default.
        top_k: passages per search; 0 without a search.
        template_hash: changes whenever the generator's prompt does.
        max_context_tokens: token budget of the documents in the prompt.
        max_answer_tokens: token budget of the answer.
        temperature: of the generator; the searcher's belongs to the question.
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
"""Of a record that says nothing about it."""
