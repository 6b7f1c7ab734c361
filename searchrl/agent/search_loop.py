"""Runs the multi-turn search loop, in which a policy gathers documents for a question.

Training, serving and evaluation share this one implementation. A rollout runs in one asyncio task: generation and
searches are awaited one after the other, and nothing but this task changes the trajectory. Many rollouts run at once on
the same event loop.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from searchrl.agent.document_fit import fit_results
from searchrl.agent.protocols.base import Action, Answer, Finish, Invalid, ParsedTurn, Search, SearchProtocol
from searchrl.agent.turns import label_tokens, turn_seed
from searchrl.agent.types import (
    DocumentsFound,
    DocumentsSelected,
    Generation,
    Limits,
    LoopEvent,
    Observer,
    Policy,
    QueriesIssued,
    Sampling,
    Searcher,
    StopReason,
    Tokenizer,
)
from searchrl.domain.passage import SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InformationBlock, TokenKind, Trajectory, Turn
from searchrl.errors import ServiceError, Unavailable

MAX_EMPTY_PARTS = 3
"""Aborted parts in a row without a single token before the rollout fails. One may be bad luck with a weight update;
without a bound, an engine that aborts every request would keep the rollout in this loop forever."""


async def search_loop(
    question: Question,
    *,
    policy: Policy,
    searcher: Searcher,
    tokenizer: Tokenizer,
    protocol: SearchProtocol,
    limits: Limits,
    sampling: Sampling,
    rollout_id: str,
    initial: Sequence[SearchResult] | None = None,
    observer: Observer | None = None,
) -> Trajectory:
    """Run the loop for one question; see the module ``protocol`` for what a protocol decides.

    ``initial`` results are shown in the prompt and become block 0 with the question's retrieval query.
    Every environment step (a search, an invalid turn that gets feedback, any further action) uses up one of
    ``limits.max_searches``; after the last one the policy generates once more and a query there is ignored: with
    ``max_searches`` 3 a rollout has at most 4 turns.
    Each turn samples with its own seed, derived from ``sampling.seed`` (see ``turn_seed``).
    When the wall-clock budget runs out, the pending call is canceled and the finished turns are kept.

    Raises:
        searchrl.errors.ServiceError: the policy or the searcher failed. There is no trajectory then: an outage is
            neither an observation nor a reward.
    """
    rollout = _Rollout(
        question, policy, searcher, tokenizer, protocol, limits, sampling, rollout_id, observer, Trajectory(question.id)
    )
    # Outside the time limit: it awaits nothing, so a timeout could not interrupt it.
    rollout.open(initial)
    clock = asyncio.timeout(limits.seconds)
    try:
        async with clock:
            stop_reason = await rollout.run()
    except TimeoutError:
        # A timeout inside the policy or the searcher is their failure, not the end of this rollout's budget.
        if not clock.expired():
            raise
        stop_reason = StopReason.TIME_LIMIT
    return rollout.close(stop_reason)


@dataclass(slots=True)
class _Rollout:
    """One run of the loop.

    The time limit can cancel the run at any await, so the trajectory is consistent at each of them: ids, turns and
    blocks are appended only after the awaited call has returned.
    """

    question: Question
    policy: Policy
    searcher: Searcher
    tokenizer: Tokenizer
    protocol: SearchProtocol
    limits: Limits
    sampling: Sampling
    rollout_id: str
    observer: Observer | None
    trajectory: Trajectory
    # The prompt, then turns and observations alternately; legacy protocols parse the documents out of it.
    transcript: list[str] = field(default_factory=list)

    def open(self, initial: Sequence[SearchResult] | None) -> None:
        """Render the prompt; this happens once per rollout.

        If the protocol cuts documents, the initial ones have the budget of one observation.
        """
        displayed: Sequence[SearchResult] = initial or ()
        if initial is not None:
            block = InformationBlock(self.question.retrieval_query, tuple(initial))
            if initial and self.protocol.rules.cuts_documents:
                fitted = fit_results([initial], self.protocol, self.tokenizer, self.limits.max_observation_tokens)
                displayed = fitted.displayed[0]
                block = replace(block, results=fitted.results[0], cut=fitted.cut[0])
            self.trajectory.blocks.append(block)
        prompt = self.protocol.render_prompt(self.question.text, displayed)
        self.transcript.append(prompt)
        self.trajectory.tokens.append_given(self.tokenizer.render_prompt(prompt), TokenKind.PROMPT)

    async def run(self) -> StopReason:
        """Generate, parse and act, turn by turn, until the rollout ends; return why it ended."""
        for turn in range(self.limits.max_searches + 1):
            # With a context of 8000 tokens of which 7800 are used, this turn has 200 tokens instead of its usual 500.
            room = self.limits.max_context_tokens - len(self.trajectory.tokens)
            if room < 1:
                return StopReason.CONTEXT_OVERFLOW
            generation, seconds = await self.generate(turn, room)
            is_last = turn == self.limits.max_searches
            parsed, truncated = self.read(generation, seconds, is_last)
            # The selection of a truncated turn counts: it is complete text, written before the limit was reached.
            await self.select(turn, parsed)
            if truncated:
                # The context cut the turn if it left no more room than the budget of every turn.
                full = room <= self.limits.max_turn_tokens
                return StopReason.CONTEXT_OVERFLOW if full else StopReason.TRUNCATED
            if (reason := self.end_reason(parsed.action, is_last)) is not None:
                return reason
            if not await self.act(turn, parsed.action):
                return StopReason.CONTEXT_OVERFLOW
        raise AssertionError("the last turn always ends the loop")

    async def generate(self, turn: int, room: int) -> tuple[Generation, float]:
        """Sample one turn and append its ids exactly as sampled."""
        # Stop strings are the protocol's, because a turn must end where its action does; the caller may add others.
        stop = (*self.protocol.stop, *self.sampling.stop)
        sampling = replace(self.sampling, max_tokens=min(self.limits.max_turn_tokens, room), stop=stop)
        started = time.monotonic()
        generation = await sample_turn(self.policy, self.trajectory.tokens.ids, sampling, self.rollout_id, turn)
        kinds = label_tokens(generation.ids, self.tokenizer, self.protocol.rules.tag_kinds)
        self.trajectory.tokens.append_sampled(generation.ids, generation.logprobs, generation.versions, kinds)
        return generation, time.monotonic() - started

    def read(self, generation: Generation, seconds: float, is_last: bool) -> tuple[ParsedTurn, bool]:
        """Parse and record the turn; return it, and whether its token limit truncated it.

        The last turn's query is not recorded, because nothing searches for it.
        """
        # The text is read, never tokenized again: other ids could spell it, and training needs those that were sampled.
        text = self.tokenizer.decode(generation.ids)
        latest = self.trajectory.blocks[-1] if self.trajectory.blocks else None
        parsed = self.protocol.parse_turn(text, latest)
        truncated = (
            generation.finish_reason == "length"
            and self.protocol.rules.truncation_ends
            # The last allowed token may complete a stop string; such a turn is not truncated.
            and not any(stop in text for stop in self.protocol.stop)
        )
        well_formed = parsed.well_formed and not truncated
        self.transcript.append(text)
        self.trajectory.well_formed &= well_formed
        self.trajectory.turns.append(
            Turn(
                text=text,
                action="truncated" if truncated else _label(parsed.action),
                queries=parsed.action.queries
                if isinstance(parsed.action, Search) and not (truncated or is_last)
                else (),
                well_formed=well_formed,
                finish_reason=generation.finish_reason,
                generate_seconds=seconds,
            )
        )
        return parsed, truncated

    async def select(self, turn: int, parsed: ParsedTurn) -> None:
        """Let the selection claim the latest block, unless an earlier selection has claimed it."""
        blocks = self.trajectory.blocks
        if parsed.selection is None or not blocks or blocks[-1].selection is not None:
            return
        results = blocks[-1].results
        # A legacy protocol accepts the numbers 1 to 8 whatever the block holds, so the range is checked here.
        positions = tuple(position for position in parsed.selection if 1 <= position <= len(results))
        blocks[-1] = replace(blocks[-1], selection=positions)
        await self.notify(DocumentsSelected(turn, tuple(results[position - 1].passage for position in positions)))

    def end_reason(self, action: Action, is_last: bool) -> StopReason | None:
        """Return why the rollout ends with this action; None if the environment replies."""
        match action:
            case Finish():
                return StopReason.COMPLETED
            case Answer(text=text):
                self.trajectory.answer = text
                return StopReason.COMPLETED
            # After the last turn there is nobody to read the feedback.
            case Invalid(feedback=feedback) if feedback is None or is_last:
                return StopReason.MALFORMED
        return StopReason.MAX_SEARCHES if is_last else None

    async def act(self, turn: int, action: Action) -> bool:
        """Run one environment step; return False if its observation does not fit the context."""
        match action:
            case Search(queries=queries):
                return await self.search(turn, queries)
            case Invalid(feedback=feedback):
                return self.observe(feedback or "")
            case Finish() | Answer():
                raise AssertionError("these end the loop")
        step = await action.step(tuple(self.trajectory.blocks))
        return self.observe(step.observation, blocks=step.blocks)

    async def search(self, turn: int, queries: tuple[str, ...]) -> bool:
        """Search, show as many documents as fit, and record exactly those; return False if none of it fits."""
        await self.notify(QueriesIssued(turn, queries))
        started = time.monotonic()
        found = await self.searcher.search(queries, self.limits.top_k, self.question.filters)
        # Lists and queries are matched by position. With one list missing, documents would be shown under the wrong
        # query.
        if len(found) != len(queries):
            raise ServiceError(f"the searcher answered {len(queries)} queries with {len(found)} lists")
        seconds = time.monotonic() - started
        # read() has recorded the turn before the search was awaited, so a time limit in the search keeps the turn.
        self.trajectory.turns[-1] = replace(self.trajectory.turns[-1], search_seconds=seconds)
        fitted = fit_results(found, self.protocol, self.tokenizer, self.limits.max_observation_tokens)
        blocks = [
            InformationBlock(query, results, cut=cut)
            for query, results, cut in zip(queries, fitted.results, fitted.cut, strict=True)
        ]
        # Observers hear of documents only once the policy can see them.
        fits = self.observe(fitted.text, fitted.ids, blocks)
        for block in blocks if fits else ():
            await self.notify(DocumentsFound(turn, block.query, block.results))
        return fits

    def observe(self, text: str, ids: list[int] | None = None, blocks: Sequence[InformationBlock] = ()) -> bool:
        """Append an observation, tokenized once; return False, and append nothing, if no turn could follow it."""
        ids = self.tokenizer.encode(text) if ids is None else ids
        # Equality fails too: the next turn needs room for at least one token.
        if len(self.trajectory.tokens) + len(ids) >= self.limits.max_context_tokens:
            return False
        self.transcript.append(text)
        self.trajectory.tokens.append_given(ids, TokenKind.OBSERVATION)
        self.trajectory.blocks.extend(blocks)
        return True

    def close(self, stop_reason: StopReason) -> Trajectory:
        """Assemble the documents and return the finished trajectory."""
        self.trajectory.documents = self.protocol.assemble_documents(self.trajectory.blocks, self.transcript)
        self.trajectory.stop_reason = stop_reason.value
        return self.trajectory

    async def notify(self, event: LoopEvent) -> None:
        if self.observer is not None:
            await self.observer(event)


def _label(action: Action) -> str:
    """Return the action's name for ``Turn.action``."""
    match action:
        case Search():
            return "search"
        case Finish():
            return "finish"
        case Answer():
            return "answer"
        case Invalid():
            return "invalid"
    return action.name


async def sample_turn(
    policy: Policy, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str, turn: int
) -> Generation:
    """Sample until the turn is finished.

    An engine that is paused for new weights may return what it has with finish reason "aborted"; the turn then
    continues from the kept tokens, each with the version that sampled it. Tokens that were sampled count against
    ``sampling.max_tokens``: with a budget of 500 and 120 tokens before the abort, 380 are left.

    Raises:
        searchrl.errors.ServiceError: the engine failed, gave up several times without a token, or contradicted itself.
    """
    part = await _sample(policy, prompt_ids, sampling, rollout_id, turn_seed(sampling.seed, turn))
    turn_so_far = part
    empty_parts = 0
    attempt = 0
    while part.finish_reason == "aborted":
        empty_parts = 0 if part.ids else empty_parts + 1
        if empty_parts == MAX_EMPTY_PARTS:
            raise Unavailable("the policy aborted a generation repeatedly without sampling a token")
        left = sampling.max_tokens - len(turn_so_far.ids)
        if left < 1:
            return replace(turn_so_far, finish_reason="length")
        # A seed of its own per part: the same seed again would repeat the random numbers of the part before.
        attempt += 1
        seed = turn_seed(sampling.seed, turn, attempt)
        rest = replace(sampling, max_tokens=left)
        part = await _sample(policy, [*prompt_ids, *turn_so_far.ids], rest, rollout_id, seed)
        turn_so_far = Generation(
            turn_so_far.ids + part.ids,
            turn_so_far.logprobs + part.logprobs,
            turn_so_far.versions + part.versions,
            part.finish_reason,
        )
    return turn_so_far


async def _sample(
    policy: Policy, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str, seed: int | None
) -> Generation:
    if seed is not None:
        sampling = replace(sampling, seed=seed)
    # An immutable copy: the caller passes the trajectory's own list, which grows after this call.
    generation = await policy.generate(tuple(prompt_ids), sampling, rollout_id)
    if not len(generation.ids) == len(generation.logprobs) == len(generation.versions):
        raise ServiceError(
            f"the policy returned {len(generation.ids)} ids, {len(generation.logprobs)} log-probabilities "
            f"and {len(generation.versions)} versions"
        )
    return generation
