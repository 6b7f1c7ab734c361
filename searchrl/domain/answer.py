"""Defines the record of an answer: its text, its documents and searches, what made it, and the verdict on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import Trajectory


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


@dataclass(frozen=True, slots=True)
class TextWritten:
    """A piece of an answer's text, in the order in which the model writes it."""

    text: str


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One block of documents: the query, the passages found, and those kept (None: no selection was made)."""

    turn: int
    query: str
    found: tuple[str, ...]
    selected: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that an answer took.

    Attributes:
        prompt_tokens, completion_tokens: of the generator's call.
        context_tokens: tokens of the documents in the generator's prompt.
        searcher_prompt_tokens, searcher_completion_tokens: of all calls of the searcher; each counts its entire prompt.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    context_tokens: int = 0
    searcher_prompt_tokens: int = 0
    searcher_completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one question, as every service and client holds it.

    Attributes:
        documents: ids of the passages given to the generator, in order; nothing else can be cited.
        passages: the passages that the answer names, by id, with the text that the generator read.
        cut: ids of the documents that the model saw truncated, because the token budget did not hold them all.
        left_out: ids of the gathered documents that it did not see, because not even their beginning fit.
        finish_reason: why the model that wrote the text stopped; "length" if it is truncated, empty if unknown.
        provenance: the models, prompt, index and settings that made the answer.
        steps: the searches, for those who follow an answer's events; the final event does not repeat them.
        searches: queries that reached the retriever after the initial one.
        stop_reason: why the search ended, a ``StopReason`` value.
        policy_version: version of the searcher that chose the documents, "v12"; empty without a searcher.
        seconds: wall-clock time from admission to the last token.
        trajectory: the searcher's rollout, if it was requested.
    """

    text: str = ""
    documents: tuple[str, ...] = ()
    passages: Mapping[str, Passage] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    finish_reason: str = ""
    # Frozen, so that one instance can be the default of every answer.
    usage: Usage = Usage()
    provenance: Provenance = UNKNOWN_PROVENANCE
    steps: tuple[SearchStep, ...] = ()
    searches: int = 0
    stop_reason: str = ""
    policy_version: str = ""
    seconds: float = 0.0
    trajectory: Trajectory | None = None


NO_ANSWER = Answer()
"""The answer of a question that failed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right.

    Attributes:
        decided_by: "span", "choice", "polarity" or "judge".
        judge_version: names everything a verdict of the judge depends on.
        prompt_tokens, completion_tokens: of the judge's calls for this verdict; 0 if none was made.
    """

    correct: bool
    decided_by: str
    judge_version: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
