"""Provides the method ``search_r1``: the searcher writes the answer itself, without another model."""

from searchrl.agent.types import StopReason
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest
from services.generator.methods.answering_method import AnswerOptions, Emit, FinalAnswer, TextWritten
from services.generator.methods.searcher_run import SearcherRun
from services.generator.prompting.context_answerer import DEFAULT_REPLY

_OUT_OF_TOKENS = frozenset({StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})


class SearchR1Method:
    """Returns the searcher's own answer; empty if its rollout ends without one, which is a failure of the policy."""

    name = "search_r1"

    def __init__(self, run: SearcherRun) -> None:
        self._run = run

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> FinalAnswer:
        if options.reply != DEFAULT_REPLY:
            raise InvalidRequest(
                "search_r1 writes the answer with the searcher, as it was trained: system messages, earlier turns, "
                "max_tokens and temperature do not apply; the searcher's temperature is searchrl.temperature"
            )
        gathered = await self._run.gather(question, options, emit)
        trajectory = gathered.trajectory
        answer = (trajectory.answer or "").strip()
        if answer:
            await emit(TextWritten(answer))
        cut = (block.results[position - 1].passage.id for block in trajectory.blocks for position in block.cut)
        written = FinalAnswer(
            answer=answer,
            documents=trajectory.documents,
            searches=trajectory.searches,
            prompt_tokens=0,
            completion_tokens=0,
            context_tokens=0,
            stop_reason=trajectory.stop_reason,
            finish_reason="length" if trajectory.stop_reason in _OUT_OF_TOKENS else "stop",
            cut=tuple(dict.fromkeys(cut)),
        )
        return gathered.complete(written)
