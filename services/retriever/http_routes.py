"""Which REST routes does the retriever have? The rpcs' twins, and ``POST /retrieve`` as Search-R1's clients call it."""

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.platform.rest_mirror import Mirror, mirror_router
from services.retriever.grpc_servicer import RetrieverServicer
from services.retriever.search_service import RetrievedRows, SearchService

MIRRORS = (
    Mirror("POST", "/v1/search", "Search", pb.SearchRequest, pb.SearchResponse),
    Mirror("POST", "/v1/passages", "GetPassages", pb.GetPassagesRequest, pb.GetPassagesResponse),
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
    """The request of Search-R1, s3 and verl. Further fields are let through, as those servers do."""

    model_config = ConfigDict(extra="ignore")

    queries: list[str] | str = Field(description="Queries; a single string counts as one.")
    topk: int | None = Field(default=None, description="Results per query; null: the server's default.")
    return_scores: bool = Field(default=False, description="Whether each row comes with its score.")


def mirror_routes(servicer: RetrieverServicer) -> APIRouter:
    """The REST twins of the rpcs."""
    return mirror_router(servicer, MIRRORS, "retriever")


def retrieve_router(service: SearchService) -> APIRouter:
    """``POST /retrieve``."""
    router = APIRouter(tags=["compatible"])

    @router.post(
        "/retrieve",
        summary="Search as Search-R1, s3 and verl do",
        responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}},
    )
    async def retrieve(body: RetrieveBody) -> Response:
        queries = [body.queries] if isinstance(body.queries, str) else body.queries
        answer = _as_search_r1(await service.retrieve(queries, body.topk), body.return_scores)
        return Response(orjson.dumps(answer), media_type="application/json")

    return router


def _as_search_r1(answers: list[RetrievedRows], with_scores: bool) -> dict[str, object]:
    """The known clients read ``result`` only. A query that failed has no rows there and its reason in ``errors``."""
    result: list[list[object]] = [
        [{"document": row.document, "score": row.score} if with_scores else row.document for row in answer.rows]
        for answer in answers
    ]
    errors = {str(position): answer.error for position, answer in enumerate(answers) if answer.error}
    return {"result": result, "errors": errors} if errors else {"result": result}


_EXAMPLE = {"result": [[{"document": {"id": "0", "contents": '"Title"\ntext'}, "score": 12.5}]]}
