"""Provides the method ``s3``: a searcher gathers and selects documents, the frozen generator answers from them."""

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from services.generator.methods.answering_method import AnswerOptions, Emit, answer_from_documents
from services.generator.methods.searcher_run import SearcherRun
from services.generator.prompting.context_answerer import ContextAnswerer


class S3Method:
    """The searcher selects the documents; the generator sees only them, never the searcher's text."""

    name = "s3"

    def __init__(self, run: SearcherRun, answerer: ContextAnswerer) -> None:
        self._run = run
        self._answerer = answerer

    async def answer(self, question: Question, options: AnswerOptions, emit: Emit) -> Answer:
        gathered = await self._run.gather(question, options, emit)
        return gathered.complete(
            await answer_from_documents(self._answerer, question, gathered.trajectory.documents, emit, options=options)
        )
