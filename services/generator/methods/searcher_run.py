"""Runs a searcher online: its profile, the search loop, and a remote policy."""

import uuid
from dataclasses import dataclass, replace

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.search_loop import DocumentsFound, search_loop
from searchrl.agent.types import Policy, Tokenizer
from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.domain.trajectory import NOT_SAMPLED, Trajectory
from searchrl.platform.request_context import request_id
from services.generator.methods.answering_method import AnswerOptions, Emit, add_retrieval
from services.generator.methods.recorded_calls import CountingPolicy, RecordingRetriever, Retriever


@dataclass(frozen=True, slots=True)
class PublishedSearcher:
    """The searcher's policy version (-1: unknown) and its weights' fingerprint, from the model folder."""

    version: int = NOT_SAMPLED
    fingerprint: str = ""


UNPUBLISHED = PublishedSearcher()


@dataclass(frozen=True, slots=True)
class GatheredDocuments:
    """The searcher's trajectory for one question, with what is recorded about its calls."""

    trajectory: Trajectory
    policy: CountingPolicy
    retrieval: RecordingRetriever
    top_k: int
    model: str
    versions: tuple[int, ...]
    fingerprint: str

    def complete(self, written: Answer) -> Answer:
        """Add the searcher's part to the written answer."""
        provenance = replace(
            add_retrieval(written.provenance, self.retrieval, self.top_k),
            searcher_model=self.model,
            searcher_version="+".join(f"v{version}" for version in self.versions)
            + (f":{self.fingerprint[:12]}" if self.fingerprint else ""),
        )
        return replace(
            written,
            searches=self.trajectory.searches,
            stop_reason=self.trajectory.stop_reason,
            trajectory=self.trajectory,
            policy_version=f"v{self.versions[-1]}" if self.versions else "",
            usage=replace(
                written.usage,
                searcher_prompt_tokens=self.policy.prompt_tokens,
                searcher_completion_tokens=self.policy.completion_tokens,
            ),
            provenance=provenance,
        )


@dataclass(frozen=True, slots=True)
class SearcherRun:
    """A searcher with everything its loop needs.

    Attributes:
        profile: the prompt and limits it was trained with; a question may override searches, passages and temperature.
        temperature: sampling temperature if a question names none; 0 is greedy.
        model: the searcher's name at its engine.
        published: its version from the model folder; used if the engine reports no version of its own (vLLM).
    """

    policy: Policy
    retriever: Retriever
    tokenizer: Tokenizer
    profile: SearcherProfile
    temperature: float = 0.0
    model: str = ""
    published: PublishedSearcher = UNPUBLISHED

    async def gather(self, question: Question, options: AnswerOptions, emit: Emit) -> GatheredDocuments:
        """Run the loop, the initial search included, and pass each step to ``emit``.

        Raises:
            searchrl.errors.ServiceError: the policy or the retriever failed.
        """
        limits = self.profile.limits
        if options.top_k is not None:
            limits = replace(limits, top_k=options.top_k)
        if options.max_searches is not None:
            limits = replace(limits, max_searches=options.max_searches)
        policy, retrieval = CountingPolicy(self.policy), RecordingRetriever(self.retriever)
        initial = None
        if self.profile.initial_top_k:
            query = question.retrieval_query
            (initial,) = await retrieval.search([query], self.profile.initial_top_k, question.filters)
            await emit(DocumentsFound(0, query, tuple(initial)))
        temperature = self.temperature if options.temperature is None else options.temperature
        trajectory = await search_loop(
            question,
            policy=policy,
            searcher=retrieval,
            tokenizer=self.tokenizer,
            protocol=self.profile.build_protocol(),
            limits=limits,
            sampling=self.profile.sampling(options.seed, temperature),
            rollout_id=request_id() or uuid.uuid4().hex,
            initial=initial,
            observer=emit,
        )
        versions, fingerprint = self._find_versions(trajectory)
        return GatheredDocuments(trajectory, policy, retrieval, limits.top_k, self.model, versions, fingerprint)

    def _find_versions(self, trajectory: Trajectory) -> tuple[tuple[int, ...], str]:
        """Return every policy version that wrote a token, oldest first, and the fingerprint of the folder's version.

        An engine that reports no version counts as version 0; the version of the model folder replaces it.
        """
        sampled = tuple(sorted(set(trajectory.tokens.versions) - {NOT_SAMPLED}))
        published = self.published
        if sampled in ((0,), (published.version,)) and published.version != NOT_SAMPLED:
            return (published.version,), published.fingerprint
        return sampled, ""
