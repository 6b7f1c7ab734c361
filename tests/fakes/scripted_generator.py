"""A generator service without a model: each method answers by a rule, and failures are scheduled."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from searchrl.domain.answer import Answer, SearchStep, Usage, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question
from searchrl.errors import ServiceError
from services.evaluator.records.evaluation_run import MethodSpec

Rule = Callable[[Question], Answer]


def right(question: Question) -> Answer:
    """Answer with the golden answer, from the gold passages."""
    passages = [gold_passage(name) for name in question.gold_passage_ids]
    return Answer(
        question.golden_answers[0],
        documents=question.gold_passage_ids,
        passages={passage.id: passage for passage in passages},
        steps=(SearchStep(0, question.text, question.gold_passage_ids, question.gold_passage_ids),),
        searches=1,
        finish_reason="stop",
        usage=Usage(context_tokens=20 * len(passages)),
        seconds=0.01,
        stop_reason="completed",
    )


def wrong(question: Question) -> Answer:
    """Answer "unknown" after one useless passage."""
    noise = Passage("noise", "Noise", "Nothing of use.")
    return Answer(
        "unknown",
        ("noise",),
        {"noise": noise},
        finish_reason="stop",
        usage=Usage(context_tokens=10),
        seconds=0.005,
    )


def gold_passage(name: str) -> Passage:
    return Passage(name, f"Title {name}", f"Text of {name}.")


class ScriptedGenerator:
    """Implements ``AnsweringGenerator``; counts the calls and the maximum of concurrent ones."""

    def __init__(self, rules: dict[str, Rule], *, seconds: float = 0.0) -> None:
        self.rules = rules
        self.failures: dict[tuple[str, str], list[ServiceError]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.judged: list[tuple[str, str]] = []
        self.running = 0
        self.most_running = 0
        self.gate: asyncio.Event | None = None
        self.answered = 0
        self._seconds = seconds

    def fail(self, method: str, question_id: str, *errors: ServiceError) -> None:
        """Let the next calls for this pair raise ``errors``, one each."""
        self.failures[method, question_id] = list(errors)

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer:
        self.calls[method.method, question.id] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self._seconds)
            if self.gate is not None:
                await self.gate.wait()
            scheduled = self.failures.get((method.method, question.id))
            if scheduled:
                raise scheduled.pop(0)
            self.answered += 1
            return self.rules[method.method](question)
        finally:
            self.running -= 1

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        self.judged.append((question, answer))
        scheduled = self.failures.get(("judge", question))
        if scheduled:
            raise scheduled.pop(0)
        correct = answer in golden_answers
        return Verdict(correct, "span" if correct else "judge", "fake-judge-1")

    async def list_methods(self) -> list[str]:
        return list(self.rules)


class FixedPassages:
    """Stands in for ``RemotePassages``: the corpus is a set of ids."""

    def __init__(self, held: set[str], generation: str = "generation-1") -> None:
        self.held = held
        self.generation = generation

    async def find_missing(self, ids: Sequence[str]) -> set[str]:
        return set(ids) - self.held

    async def index_generation(self) -> str:
        return self.generation
