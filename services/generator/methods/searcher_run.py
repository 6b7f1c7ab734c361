"""How does a searcher gather documents online? Its own profile, the search loop, and a policy elsewhere."""

import uuid
from dataclasses import dataclass, replace

from searchrl.agent.ports import Policy, Searcher, Tokenizer
from searchrl.agent.profile import SearcherProfile
from searchrl.agent.search_loop import DocumentsFound, search_loop
from searchrl.domain.question import Question
from searchrl.domain.trajectory import NOT_SAMPLED, Trajectory
from searchrl.platform.request_context import request_id
from services.generator.methods.answering_method import AnswerOptions, Emit


@dataclass(frozen=True, slots=True)
class SearcherRun:
    """A searcher with everything its loop needs.

    Attributes:
        profile: the habits it was trained with; a question may override searches, passages and temperature.
        temperature: sampling temperature where a question names none; 0 is greedy.
    """

    policy: Policy
    searcher: Searcher
    tokenizer: Tokenizer
    profile: SearcherProfile
    temperature: float = 0.0

    async def gather(self, question: Question, options: AnswerOptions, emit: Emit) -> Trajectory:
        """Run the loop, the initial search included, and tell each step.

        Raises:
            searchrl.errors.ServiceError: the policy or the retriever failed.
        """
        limits = self.profile.limits
        if options.top_k is not None:
            limits = replace(limits, top_k=options.top_k)
        if options.max_searches is not None:
            limits = replace(limits, max_searches=options.max_searches)
        initial = None
        if self.profile.initial_top_k:
            query = question.retrieval_query
            (initial,) = await self.searcher.search([query], self.profile.initial_top_k, question.filters)
            await emit(DocumentsFound(0, query, tuple(initial)))
        temperature = self.temperature if options.temperature is None else options.temperature
        return await search_loop(
            question,
            policy=self.policy,
            searcher=self.searcher,
            tokenizer=self.tokenizer,
            protocol=self.profile.build_protocol(),
            limits=limits,
            sampling=self.profile.sampling(options.seed, temperature),
            rollout_id=request_id() or uuid.uuid4().hex,
            initial=initial,
            observer=emit,
        )


def policy_version(trajectory: Trajectory) -> str:
    """The newest policy version that wrote a token, as "v12"; empty if none did."""
    newest = max(trajectory.tokens.versions, default=NOT_SAMPLED)
    return "" if newest == NOT_SAMPLED else f"v{newest}"
