"""Implements the generator's gRPC methods by translating messages; the REST routes call the same methods."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from searchrl.agent.search_loop import DocumentsFound, DocumentsSelected, QueriesIssued
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1 import generator_pb2_grpc as rpc
from searchrl.wire.passage_codec import passage_from_wire, passage_to_wire, result_to_wire
from searchrl.wire.provenance_codec import provenance_to_wire
from searchrl.wire.question_codec import choices_from_wire, question_from_wire
from searchrl.wire.trajectory_codec import trajectory_to_wire
from services.generator.answer_service import AnswerService
from services.generator.generation_service import GenerationService
from services.generator.methods.answering_method import AnswerOptions, FinalAnswer, Step, TextWritten

Context = grpc.aio.ServicerContext | None


class GeneratorServicer(rpc.GeneratorServicer):
    """Translates messages; every decision is made in ``AnswerService`` and ``GenerationService``."""

    def __init__(self, answers: AnswerService, generations: GenerationService) -> None:
        self._answers = answers
        self._generations = generations

    async def Answer(self, request: pb.AnswerRequest, context: Context) -> AsyncIterator[pb.AnswerEvent]:
        question = question_from_wire(request.question)
        async with aclosing(self._answers.answer(question, request.method, _options(request))) as steps:
            async for step in steps:
                if isinstance(step, FinalAnswer):
                    yield pb.AnswerEvent(final=final_to_wire(step, request.with_trajectory))
                else:
                    yield step_to_wire(step)

    async def AnswerFromContext(
        self, request: pb.AnswerFromContextRequest, context: Context
    ) -> pb.AnswerFromContextResponse:
        passages = [passage_from_wire(passage) for passage in request.passages]
        answer = await self._generations.answer_from_context(request.question, passages)
        return pb.AnswerFromContextResponse(
            answer=answer.answer,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            model=answer.model,
            provenance=provenance_to_wire(answer.provenance),
            finish_reason=answer.finish_reason,
            cut=answer.cut,
            left_out=answer.left_out,
        )

    async def Judge(self, request: pb.JudgeRequest, context: Context) -> pb.JudgeResponse:
        verdict = await self._generations.judge(
            request.question, request.answer, request.golden_answers, choices_from_wire(request.choices)
        )
        return pb.JudgeResponse(
            correct=verdict.correct,
            decided_by=verdict.decided_by,
            judge_version=verdict.judge_version,
            prompt_tokens=verdict.prompt_tokens,
            completion_tokens=verdict.completion_tokens,
        )

    async def ListMethods(self, request: pb.ListMethodsRequest, context: Context) -> pb.ListMethodsResponse:
        return pb.ListMethodsResponse(methods=self._answers.methods())


def _options(request: pb.AnswerRequest) -> AnswerOptions:
    return AnswerOptions(
        top_k=request.top_k if request.HasField("top_k") else None,
        max_searches=request.max_searches if request.HasField("max_searches") else None,
        temperature=request.temperature if request.HasField("temperature") else None,
        seed=request.seed if request.HasField("seed") else None,
    )


def step_to_wire(step: Step) -> pb.AnswerEvent:
    """Return one step as an event."""
    match step:
        case QueriesIssued(turn=turn, queries=queries):
            return pb.AnswerEvent(query=pb.QueryStep(turn=turn, queries=queries))
        case DocumentsFound(turn=turn, query=query, results=results):
            found = pb.DocumentsStep(turn=turn, query=query, results=map(result_to_wire, results))
            return pb.AnswerEvent(documents=found)
        case DocumentsSelected(turn=turn, passages=passages):
            ids = [passage.id for passage in passages]
            return pb.AnswerEvent(selection=pb.SelectionStep(turn=turn, passage_ids=ids))
        case TextWritten(text=text):
            return pb.AnswerEvent(tokens=pb.TokensStep(text=text))


def final_to_wire(final: FinalAnswer, with_trajectory: bool) -> pb.FinalStep:
    """Return the final answer as a message, with its trajectory only if it was requested."""
    trajectory = final.trajectory if with_trajectory else None
    return pb.FinalStep(
        answer=final.answer,
        citations=final.citations,
        documents=map(passage_to_wire, final.documents),
        searches=final.searches,
        prompt_tokens=final.prompt_tokens,
        completion_tokens=final.completion_tokens,
        seconds=final.seconds,
        stop_reason=final.stop_reason,
        trajectory=None if trajectory is None else trajectory_to_wire(trajectory),
        context_tokens=final.context_tokens,
        policy_version=final.policy_version,
        provenance=provenance_to_wire(final.provenance),
        searcher_prompt_tokens=final.searcher_prompt_tokens,
        searcher_completion_tokens=final.searcher_completion_tokens,
        finish_reason=final.finish_reason,
        cut=final.cut,
        left_out=final.left_out,
    )
