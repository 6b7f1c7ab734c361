"""Judges answers, with one call of the judge per distinct answer to a question, however many methods give it."""

import asyncio
from dataclasses import replace

from searchrl.domain.answer import Verdict
from searchrl.domain.question import Question
from services.evaluator.runs.generator_port import AnsweringGenerator


class VerdictCache:
    """Calls the generator's judge and keeps the verdicts of one run; failed calls are not kept.

    Methods often agree on an answer, so a run of m methods needs far fewer than m calls per question, and equal answers
    never get different verdicts.
    """

    def __init__(self, generator: AnsweringGenerator) -> None:
        self._generator = generator
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[Verdict]] = {}

    def remember(self, question_id: str, answer: str, verdict: Verdict) -> None:
        """Keep a verdict of an earlier part of the run."""
        self._verdicts[question_id, answer] = _known(verdict)

    async def judge(self, question: Question, answer: str) -> Verdict:
        """The verdict on ``answer``. Only the episode that calls the judge gets its tokens, so that they count once.

        Raises:
            searchrl.errors.ServiceError: the judge could not be called; a failure never becomes a wrong verdict.
        """
        key = (question.id, answer)
        if key not in self._verdicts:
            task = self._asking.get(key)
            if task is not None:
                return _known(await asyncio.shield(task))
            task = asyncio.create_task(
                self._generator.judge(question.generator_text, answer, question.golden_answers, question.choices)
            )
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
            return await asyncio.shield(task)  # not cancelled with this episode: another may wait for the same verdict
        return self._verdicts[key]

    def _asked(self, key: tuple[str, str], task: asyncio.Task[Verdict]) -> None:
        del self._asking[key]
        if not task.cancelled() and task.exception() is None:
            self._verdicts[key] = _known(task.result())


def _known(verdict: Verdict) -> Verdict:
    """The verdict without its tokens, which are already counted."""
    return replace(verdict, prompt_tokens=0, completion_tokens=0)
