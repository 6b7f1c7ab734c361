"""Decides whether an answer is correct: by rules where they are reliable, else by a language model."""

import logging
from collections.abc import Sequence

from searchrl.domain.answer import Verdict
from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.errors import InvalidRequest
from searchrl.platform.tracing import span
from searchrl.rewards.generation_accuracy import generation_accuracy
from searchrl.rewards.polarity import parse_verdict
from services.generator.engines.chat_engine import ChatEngine, ChatReply
from services.generator.judging.judge_prompt import (
    CHOICES,
    JudgeRequest,
    judge_messages,
    prompt_version,
    with_format_reminder,
)
from services.generator.judging.verdict_cache import VerdictCache
from services.generator.metrics import GeneratorMetrics

logger = logging.getLogger(__name__)

ATTEMPTS = 2  # the request, and one reminder of the format; each attempt is a call of the model
EXCERPT_CHARACTERS = 200
"""Longest excerpt of an unreadable reply in errors and logs: enough to see its form."""
NO_VERDICT = "(no verdict)"
"""Replaces a reply that consists of thoughts: servers refuse an assistant message without text."""
DEFAULT_MAX_TOKENS = 1024
"""Room for the thoughts of a reasoning model; other models stop after one word."""


class Judge:
    """Decides by rules if they apply, and asks the engine otherwise.

    ``version`` names everything a verdict depends on: the engine's model and the wording of the prompt.
    """

    def __init__(
        self,
        engine: ChatEngine,
        cache: VerdictCache,
        metrics: GeneratorMetrics,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._metrics = metrics
        self._max_tokens = max_tokens
        self.version = f"{engine.model}@{prompt_version()}"

    async def decide(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        """Return the verdict.

        Raises:
            InvalidRequest: no golden answer has any text, or two replies of the judge were neither yes nor no. Another
                call would fail as well: the question cannot be scored.
            ServiceError: the engine failed; that never becomes the verdict "wrong".
        """
        golden = tuple(text for text in golden_answers if text.strip())
        if not golden:
            raise InvalidRequest("golden_answers: at least one with text is needed")
        answer = strip_thoughts(answer)
        request = JudgeRequest(question, answer, golden)
        replies: list[ChatReply] = []
        with span("judge") as judging:
            decision = await generation_accuracy(
                answer, golden, lambda: self._judge_with_cache(request, replies), choices
            )
            decided_by = "span" if decision.decided_by == "none" else decision.decided_by
            judging.set_attributes({"searchrl.decided_by": decided_by, "searchrl.correct": decision.correct})
        self._metrics.verdicts.labels(decided_by, str(decision.correct).lower()).inc()
        return Verdict(
            decision.correct,
            decided_by,
            self.version,
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
        )

    async def _judge_with_cache(self, request: JudgeRequest, replies: list[ChatReply]) -> bool:
        key = (request.question, request.answer, request.golden_answers, self.version)
        known = self._cache.get(key)
        self._metrics.verdict_cache.labels("miss" if known is None else "hit").inc()
        if known is None:
            known = await self._ask(request, replies)
            self._cache.put(key, known)
        return known

    async def _ask(self, request: JudgeRequest, replies: list[ChatReply]) -> bool:
        """Ask the engine for a verdict; its replies are added to ``replies``."""
        messages = judge_messages(request)
        for _ in range(ATTEMPTS):
            reply = await self._engine.chat(messages, max_tokens=self._max_tokens, choices=CHOICES)
            replies.append(reply)
            verdict = parse_verdict(reply.text)
            if verdict is not None:
                return verdict
            self._metrics.judge_unreadable.inc()
            messages = with_format_reminder(messages, strip_thoughts(reply.text) or NO_VERDICT)
        raise InvalidRequest(self._describe_unreadable(replies[-1]))

    def _describe_unreadable(self, reply: ChatReply) -> str:
        """Describe a reply that is neither yes nor no, and log the description."""
        shown = " ".join(reply.text.split())
        shown = shown if len(shown) <= EXCERPT_CHARACTERS else shown[:EXCERPT_CHARACTERS] + "…"
        sentence = f"the judge {reply.model} replied neither yes nor no, twice, at last: {shown!r}"
        if reply.finish_reason == "length":
            sentence += f"; the reply was cut, so its thoughts may need more than judge.max_tokens ({self._max_tokens})"
        logger.warning("%s", sentence)
        return sentence
