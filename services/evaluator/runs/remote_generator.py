"""Calls the generator and the retriever for an evaluation, over their clients."""

from collections.abc import Sequence

from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.question import Choice, Question
from searchrl.errors import NotFound
from searchrl.wire.answer_codec import AnswerEvents
from services.evaluator.records.evaluation_run import ORACLE_DOCUMENTS, MethodSpec
from services.evaluator.runs.episode_runner import NotApplicable


class RemoteGenerator:
    """``AnsweringGenerator`` over the generator service."""

    def __init__(self, client: GeneratorClient) -> None:
        self._client = client

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answer:
        """Follow one answer to its end.

        Raises:
            NotApplicable: the oracle, for a question whose gold passages are unknown, or not in the corpus.
            ServiceError: the call failed, or the stream ended before its final event.
        """
        if method.method != ORACLE_DOCUMENTS:
            return await self._answer(question, method, with_trajectory)
        if not question.gold_passage_ids:
            raise NotApplicable("the question names no gold passages")
        try:
            return await self._answer(question, method, with_trajectory)
        except NotFound as error:
            raise NotApplicable(str(error)) from error

    async def _answer(self, question: Question, method: MethodSpec, with_trajectory: bool) -> Answer:
        events = AnswerEvents()
        async for event in self._client.answer(
            question,
            method.method,
            top_k=method.top_k,
            max_searches=method.max_searches,
            temperature=method.temperature,
            seed=method.seed,
            with_trajectory=with_trajectory,
        ):
            events.add(event)
        return events.answer()

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        return await self._client.judge(question, answer, golden_answers, choices)

    async def list_methods(self) -> list[str]:
        return await self._client.list_methods()


class RemotePassages:
    """The retriever service, as far as the controls need it."""

    LOOKUP_BATCH = 500
    """Ids per request; the retriever refuses more than 4,096, and a smaller batch keeps its answers small."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    async def find_missing(self, ids: Sequence[str]) -> set[str]:
        """Those of ``ids`` that the corpus does not contain."""
        wanted = list(dict.fromkeys(ids))
        held: set[str] = set()
        for start in range(0, len(wanted), self.LOOKUP_BATCH):
            passages = await self._client.get_passages(wanted[start : start + self.LOOKUP_BATCH])
            held.update(passage.id for passage in passages)
        return set(wanted) - held

    async def index_generation(self) -> str:
        """The generation that answers searches; taken from a search, because listing indexes needs an admin key."""
        _, generation = await self._client.search_with_generation(["index generation"], 1, {})
        return generation
