"""Client of the generator over gRPC: answers questions, answers from given passages, and judges answers."""

from collections.abc import AsyncIterator, Sequence

from searchrl.clients.channel import Tls
from searchrl.clients.service_client import ServiceClient
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1.generator_pb2_grpc import GeneratorStub
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question
from searchrl.platform.retry import RetryPolicy
from searchrl.wire.answer_codec import context_answer_from_wire, verdict_from_wire
from searchrl.wire.record_codec import choices_to_wire, passage_to_wire, question_to_wire


class GeneratorClient(ServiceClient[GeneratorStub]):
    """Typed calls to the generator at ``target`` ("host:port").

    The default timeout is four times that of the other clients: an answer takes several searches and model calls.
    """

    def __init__(
        self,
        target: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 120.0,
        tls: Tls | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        super().__init__(target, GeneratorStub, key=key, timeout_seconds=timeout_seconds, tls=tls, retries=retries)

    def answer(
        self,
        question: Question,
        method: str,
        *,
        top_k: int | None = None,
        max_searches: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        with_trajectory: bool = False,
    ) -> AsyncIterator[pb.AnswerEvent]:
        """Answer with an answering method; yields the steps as they happen, the last one is ``final``.

        Raises (while iterating):
            ServiceError: the answer failed, possibly after some steps.
        """
        request = pb.AnswerRequest(
            question=question_to_wire(question),
            method=method,
            top_k=top_k,
            max_searches=max_searches,
            temperature=temperature,
            seed=seed,
            with_trajectory=with_trajectory,
        )
        # Optional arguments that are None stay unset in the message, so that the server's defaults apply.
        return self._channel.stream(lambda stub: stub.Answer, request)

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        """Return the frozen generator's answer to ``question`` from ``passages`` alone.

        Raises:
            ServiceError: the generator failed; a failure is never returned as an empty answer.
        """
        request = pb.AnswerFromContextRequest(question=question, passages=map(passage_to_wire, passages))
        return context_answer_from_wire(await self._channel.unary(lambda stub: stub.AnswerFromContext, request))

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        """Decide whether ``answer`` is right: by rules if they are certain, else by the judge model.

        Raises:
            ServiceError: the judge failed; a failure is never returned as a verdict.
        """
        request = pb.JudgeRequest(
            question=question, answer=answer, golden_answers=golden_answers, choices=choices_to_wire(choices)
        )
        return verdict_from_wire(await self._channel.unary(lambda stub: stub.Judge, request))

    async def list_methods(self) -> list[str]:
        """Return the names of the answering methods that this generator serves."""
        return list((await self._channel.unary(lambda stub: stub.ListMethods, pb.ListMethodsRequest())).methods)
