"""Implements the generator's gRPC methods by translating messages; the REST routes call the same methods."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1 import generator_pb2_grpc as rpc
from searchrl.domain.answer import Answer
from searchrl.wire.answer_codec import answer_to_wire, context_answer_to_wire, step_to_wire, verdict_to_wire
from searchrl.wire.record_codec import choices_from_wire, passage_from_wire, question_from_wire
from services.generator.answer_service import AnswerService, GenerationService
from services.generator.methods.base import AnswerOptions

# None when the REST mirror calls, which has no gRPC context.
Context = grpc.aio.ServicerContext | None


class GeneratorServicer(rpc.GeneratorServicer):
    """Translates messages; every decision is made in ``AnswerService`` and ``GenerationService``."""

    def __init__(self, answers: AnswerService, generations: GenerationService) -> None:
        self._answers = answers
        self._generations = generations

    async def Answer(self, request: pb.AnswerRequest, context: Context) -> AsyncIterator[pb.AnswerEvent]:
        question = question_from_wire(request.question)
        # A client that hangs up cancels this method; closing the steps then cancels the work and frees its slot at
        # once.
        async with aclosing(self._answers.answer(question, request.method, _read_options(request))) as steps:
            async for step in steps:
                if isinstance(step, Answer):
                    yield pb.AnswerEvent(final=answer_to_wire(step, with_trajectory=request.with_trajectory))
                else:
                    yield step_to_wire(step)

    async def AnswerFromContext(
        self, request: pb.AnswerFromContextRequest, context: Context
    ) -> pb.AnswerFromContextResponse:
        passages = [passage_from_wire(passage) for passage in request.passages]
        return context_answer_to_wire(await self._generations.answer_from_context(request.question, passages))

    async def Judge(self, request: pb.JudgeRequest, context: Context) -> pb.JudgeResponse:
        verdict = await self._generations.judge(
            request.question, request.answer, request.golden_answers, choices_from_wire(request.choices)
        )
        return verdict_to_wire(verdict)

    async def ListMethods(self, request: pb.ListMethodsRequest, context: Context) -> pb.ListMethodsResponse:
        return pb.ListMethodsResponse(methods=self._answers.methods())


def _read_options(request: pb.AnswerRequest) -> AnswerOptions:
    return AnswerOptions(
        # proto3 reads an absent number as 0, which is a valid seed, temperature or number of searches: HasField tells
        # them apart.
        top_k=request.top_k if request.HasField("top_k") else None,
        max_searches=request.max_searches if request.HasField("max_searches") else None,
        temperature=request.temperature if request.HasField("temperature") else None,
        seed=request.seed if request.HasField("seed") else None,
    )
