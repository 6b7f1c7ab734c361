"""Implements the ports of an evaluation over the clients: an answer's events become one ``Answered`` record."""

from collections.abc import Sequence

from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question
from searchrl.errors import NotFound, Unavailable
from searchrl.wire.passage_codec import passage_from_wire
from searchrl.wire.provenance_codec import provenance_from_wire
from services.evaluator.records.episode import Answered, SearchStep, Verdict
from services.evaluator.records.evaluation_run import ORACLE_DOCUMENTS, MethodSpec
from services.evaluator.runs.generator_port import NotApplicable


class RemoteGenerator:
    """``AnsweringGenerator`` over the generator service."""

    def __init__(self, client: GeneratorClient) -> None:
        self._client = client

    async def answer(self, question: Question, method: MethodSpec, *, with_trajectory: bool = False) -> Answered:
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

    async def _answer(self, question: Question, method: MethodSpec, with_trajectory: bool) -> Answered:
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
        return events.answered()

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        verdict = await self._client.judge(question, answer, golden_answers, choices)
        return Verdict(
            correct=verdict.correct,
            decided_by=verdict.decided_by,
            judge_version=verdict.judge_version,
            prompt_tokens=verdict.prompt_tokens,
            completion_tokens=verdict.completion_tokens,
        )

    async def list_methods(self) -> list[str]:
        return await self._client.list_methods()


class AnswerEvents:
    """Collects the events of one answer."""

    def __init__(self) -> None:
        self._steps: list[SearchStep] = []
        self._passages: dict[str, Passage] = {}
        self._final: pb.FinalStep | None = None

    def add(self, event: pb.AnswerEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "documents":
            found = [passage_from_wire(result.passage) for result in event.documents.results]
            self._passages.update((passage.id, passage) for passage in found)
            step = SearchStep(event.documents.turn, event.documents.query, tuple(passage.id for passage in found))
            self._steps.append(step)
        elif kind == "selection":
            self._select(tuple(event.selection.passage_ids))
        elif kind == "final":
            self._final = event.final

    def answered(self) -> Answered:
        """The record of the finished answer.

        Raises:
            Unavailable: the final event is missing.
        """
        final = self._final
        if final is None:
            raise Unavailable("the answer's stream ended before its final event")
        given = [passage_from_wire(passage) for passage in final.documents]
        self._passages.update((passage.id, passage) for passage in given)
        return Answered(
            answer=final.answer,
            documents=tuple(passage.id for passage in given),
            passages=self._passages,
            steps=tuple(self._steps),
            searches=final.searches,
            prompt_tokens=final.prompt_tokens,
            completion_tokens=final.completion_tokens,
            context_tokens=final.context_tokens,
            seconds=final.seconds,
            stop_reason=final.stop_reason,
            policy_version=final.policy_version,
            searcher_prompt_tokens=final.searcher_prompt_tokens,
            searcher_completion_tokens=final.searcher_completion_tokens,
            provenance=provenance_from_wire(final.provenance),
            finish_reason=final.finish_reason,
            cut=tuple(final.cut),
            left_out=tuple(final.left_out),
            trajectory=final.trajectory.SerializeToString() if final.HasField("trajectory") else b"",
        )

    def _select(self, ids: tuple[str, ...]) -> None:
        """Apply a selection to the blocks shown last: those that share the last block's turn."""
        if not self._steps:
            return
        turn = self._steps[-1].turn
        for position, step in enumerate(self._steps):
            if step.turn == turn:
                kept = tuple(identifier for identifier in ids if identifier in step.found)
                self._steps[position] = SearchStep(step.turn, step.query, step.found, kept)


class RemotePassages:
    """``PassageLookup`` over the retriever service."""

    LOOKUP_BATCH = 500
    """Ids per request; the retriever refuses more than 4,096, and a smaller batch keeps its answers small."""

    def __init__(self, client: RetrieverClient) -> None:
        self._client = client

    async def find_missing(self, ids: Sequence[str]) -> set[str]:
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
