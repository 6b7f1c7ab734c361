"""Defines the generator's REST routes, one for each rpc; the OpenAI routes are in ``openai_api``."""

from fastapi import APIRouter

from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from services.generator.grpc_servicer import GeneratorServicer

MIRRORS = (
    Mirror("POST", "/v1/answer", "Answer", pb.AnswerRequest, pb.AnswerEvent, streaming=True),
    Mirror(
        "POST",
        "/v1/answer_from_context",
        "AnswerFromContext",
        pb.AnswerFromContextRequest,
        pb.AnswerFromContextResponse,
    ),
    Mirror("POST", "/v1/judge", "Judge", pb.JudgeRequest, pb.JudgeResponse),
    Mirror("GET", "/v1/methods", "ListMethods", pb.ListMethodsRequest, pb.ListMethodsResponse),
)


def rest_router(servicer: GeneratorServicer) -> APIRouter:
    """Build the router with one route per rpc."""
    return mirror_router(servicer, MIRRORS, tag="generator")
