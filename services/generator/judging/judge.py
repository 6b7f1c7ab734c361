"""Is an answer right? The span check first, then a language model that says yes or no."""

from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.domain.question import Choice
from searchrl.errors import InvalidRequest, Unavailable
from searchrl.platform.tracing import span
from searchrl.rewards.generation_accuracy import generation_accuracy
from searchrl.rewards.judge_answer import parse_verdict
from services.generator.engines.chat_engine import ChatEngine
from services.generator.judging.judge_prompt import CHOICES, JudgeRequest, judge_messages, prompt_version, reminded
from services.generator.judging.verdict_cache import VerdictCache
from services.generator.metrics import GeneratorMetrics

MAX_TOKENS = 10
ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right; ``decided_by`` is "span" or "judge"."""

    correct: bool
    decided_by: str
    judge_version: str


class Judge:
    """Decides by the span check where it can, and asks the engine otherwise.

    ``version`` names everything a verdict depends on: the engine's model and the wording of the prompt.
    """

    def __init__(self, engine: ChatEngine, cache: VerdictCache, metrics: GeneratorMetrics) -> None:
        self._engine = engine
        self._cache = cache
        self._metrics = metrics
        self.version = f"{engine.model}@{prompt_version()}"

    async def decide(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        """Return the verdict.

        Raises:
            InvalidRequest: no golden answer has any text.
            ServiceError: the judge failed, or twice replied with something else than yes or no; never "wrong" instead.
        """
        golden = tuple(text for text in golden_answers if text.strip())
        if not golden:
            raise InvalidRequest("golden_answers: at least one with text is needed")
        request = JudgeRequest(question, answer, golden)
        with span("judge") as judging:
            decision = await generation_accuracy(answer, golden, lambda: self._judged(request))
            decided_by = "judge" if decision.decided_by == "judge" else "span"
            judging.note({"searchrl.decided_by": decided_by, "searchrl.correct": decision.correct})
        self._metrics.verdicts.labels(decided_by, str(decision.correct).lower()).inc()
        return Verdict(decision.correct, decided_by, self.version)

    async def _judged(self, request: JudgeRequest) -> bool:
        key = (request.question, request.answer, request.golden_answers, self.version)
        known = self._cache.get(key)
        self._metrics.verdict_cache.labels("miss" if known is None else "hit").inc()
        if known is None:
            known = await self._ask(request)
            self._cache.put(key, known)
        return known

    async def _ask(self, request: JudgeRequest) -> bool:
        messages = judge_messages(request)
        for _ in range(ATTEMPTS):
            reply = await self._engine.chat(messages, max_tokens=MAX_TOKENS, choices=CHOICES)
            verdict = parse_verdict(reply.text)
            if verdict is not None:
                return verdict
            self._metrics.judge_unreadable.inc()
            messages = reminded(messages, reply.text)
        raise Unavailable("the judge replied neither yes nor no, twice", None)
