"""The retriever's REST routes: mirrors of its rpcs, and ``POST /retrieve`` as Search-R1's clients call it."""

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.errors import InvalidRequest, Overloaded, Unavailable
from searchrl.platform.server.answer_encoder import run_encoder
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from services.retriever.grpc_servicer import RetrieverServicer
from services.retriever.search_service import RetrievedRows, SearchService

# Builds may take hours and opening a large generation minutes, so those two have no default deadline (``unlimited``).
MIRRORS = (
    Mirror("POST", "/v1/search", "Search", pb.SearchRequest, pb.SearchResponse, batch="queries"),
    Mirror("POST", "/v1/passages", "GetPassages", pb.GetPassagesRequest, pb.GetPassagesResponse, batch="ids"),
    Mirror("GET", "/v1/admin/indexes", "ListIndexes", pb.ListIndexesRequest, pb.ListIndexesResponse),
    Mirror(
        "POST", "/v1/admin/indexes", "BuildIndex", pb.BuildIndexRequest, pb.BuildIndexProgress, True, unlimited=True
    ),
    Mirror(
        "POST",
        "/v1/admin/indexes/{generation}/activate",
        "ActivateIndex",
        pb.ActivateIndexRequest,
        pb.ActivateIndexResponse,
        unlimited=True,
    ),
)


class RetrieveBody(BaseModel):
    """The request of Search-R1, s3 and verl. Unknown fields are ignored, as in those servers."""

    model_config = ConfigDict(extra="ignore")

    queries: list[Any] | Any = Field(
        description="Queries; a single string counts as one. One that is not a text fails alone."
    )
    topk: int | None = Field(default=None, description="Results per query; null, 0 or less: the server's default.")
    return_scores: bool = Field(default=False, description="Whether each row comes with its score.")


def rest_router(servicer: RetrieverServicer) -> APIRouter:
    """The REST mirrors of the rpcs."""
    return mirror_router(servicer, MIRRORS, "retriever")


def retrieve_router(service: SearchService) -> APIRouter:
    """``POST /retrieve``, compatible with the retrieval server of Search-R1, s3 and verl."""
    router = APIRouter(tags=["compatible"])

    @router.post(
        "/retrieve",
        summary="Search as Search-R1, s3 and verl do",
        responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}},
    )
    async def retrieve(body: RetrieveBody) -> Response:
        if not isinstance(body.queries, str | list):
            raise InvalidRequest("'queries' must be a list of texts, or one text")
        queries = [body.queries] if isinstance(body.queries, str) else body.queries
        # An empty text fails by itself, which leaves the other queries of the batch their answers.
        texts = [query if isinstance(query, str) else "" for query in queries]
        top_k = body.topk if body.topk and body.topk > 0 else None
        try:
            answers = await service.retrieve(texts, top_k)
        except Overloaded as error:
            # These clients retry 500, 502, 503 and 504 only, and treat any other answer as an observation.
            raise Unavailable(str(error), error.retry_after_seconds) from error
        # Encoding thousands of rows takes tenths of a second, during which the event loop could serve nobody else.
        content = await run_encoder(_as_search_r1, queries, answers, body.return_scores)
        return Response(content, media_type="application/json")

    return router


def _as_search_r1(queries: Sequence[Any], answers: Sequence[RetrievedRows], with_scores: bool) -> bytes:
    """The known clients read ``result`` only. A failed query has no rows there; ``errors`` holds its reason."""
    result: list[list[object]] = [
        [{"document": row.document, "score": row.score} if with_scores else row.document for row in answer.rows]
        for answer in answers
    ]
    errors = {
        str(position): answer.failure.text if isinstance(query, str) else "invalid: the query is not a text"
        for position, (query, answer) in enumerate(zip(queries, answers, strict=True))
        if answer.failure is not None
    }
    return orjson.dumps({"result": result, "errors": errors} if errors else {"result": result})


_EXAMPLE = {"result": [[{"document": {"id": "0", "contents": '"Title"\ntext'}, "score": 12.5}]]}
