"""How does a Search-R1 model answer? It searches and writes the answer itself; no other model is asked."""

from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest
from services.generator.methods.answering_method import AnswerOptions, Emit, FinalAnswer, TextWritten
from services.generator.methods.searcher_run import SearcherRun
from services.generator.prompting.context_answerer import DEFAULT_REPLY


class SearchR1Method:
    """The searcher's own answer. A rollout that ends without one is answered with nothing: the policy failed."""

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
        written = FinalAnswer(
            answer=answer,
            documents=trajectory.documents,
            searches=trajectory.searches,
            prompt_tokens=0,
            completion_tokens=0,
            context_tokens=0,
            stop_reason=trajectory.stop_reason,
        )
        return gathered.complete(written)
