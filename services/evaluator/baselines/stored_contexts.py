"""Answers and scores contexts that s3 stored, as one more method, and exports ours in the same form."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.question import Choice, Question
from services.evaluator.baselines.s3_files import StoredContext, export_output_sequences, question_key
from services.evaluator.records.evaluation_run import MethodSpec
from services.evaluator.runs.episode_runner import AnsweringGenerator, NotApplicable
from services.evaluator.store.run_store import RunStore

STORED_CONTEXT = "stored_context"


class StoredContextGenerator:
    """``AnsweringGenerator`` with one more method: the frozen generator on a stored context.

    It does not apply to a question without a stored context, which counts neither as a failure nor as wrong.
    """

    def __init__(self, inner: AnsweringGenerator, reader: GeneratorClient, contexts: Iterable[StoredContext]) -> None:
        self._inner = inner
        self._reader = reader
        self._contexts = {question_key(context.question): context for context in contexts}

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer:
        """Answer; ``top_k`` of a stored context keeps its first documents.

        Raises:
            NotApplicable: no context was stored for the question.
        """
        if method.method != STORED_CONTEXT:
            return await self._inner.answer(question, method, with_trajectory=with_trajectory)
        context = self._contexts.get(question_key(question.text))
        if context is None:
            raise NotApplicable(f"no context was stored for question {question.id!r}")
        # The file has no ids, and every context counts from 1, while the store keeps passages by id for the entire run:
        # with the question's id in front they differ.
        passages = [
            replace(passage, id=f"{question.id}#{passage.id}") for passage in context.passages[: method.top_k or None]
        ]
        # This call does not report its time, unlike ``answer``; measured here, it includes the network.
        started = perf_counter()
        answer = await self._reader.answer_from_context(question.generator_text, passages)
        return replace(
            answer,
            documents=tuple(passage.id for passage in passages),
            passages={passage.id: passage for passage in passages},
            # The call does not report the tokens of the documents alone; those of the prompt are an upper bound.
            usage=replace(answer.usage, context_tokens=answer.usage.prompt_tokens),
            seconds=perf_counter() - started,
            stop_reason="completed",
        )

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        return await self._inner.judge(question, answer, golden_answers, choices)

    async def list_methods(self) -> list[str]:
        return [*await self._inner.list_methods(), STORED_CONTEXT]


def export_contexts(store: RunStore, run_id: str, label: str, path: Path) -> int:
    """Write the contexts that a column gave to the generator in s3's form; return the number of questions."""
    questions = {question.id: question for question in store.questions(run_id)}
    contexts = []
    for episode in store.episodes(run_id, label):
        if not episode.failure:
            texts = store.passages(run_id, episode.answer.documents)
            passages = tuple(texts[name] for name in episode.answer.documents if name in texts)
            question = questions[episode.question_id]
            contexts.append(StoredContext(question.text, question.golden_answers, passages, episode.answer.text))
    export_output_sequences(contexts, path)
    return len(contexts)
