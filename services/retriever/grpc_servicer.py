"""Translates the retriever's rpc messages into calls of the core."""

from collections.abc import AsyncIterator

import grpc

from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1 import retriever_pb2_grpc as rpc
from searchrl.platform.server.answer_encoder import run_encoder
from searchrl.wire.record_codec import passage_to_wire, result_to_wire
from services.retriever.indexes.manifest import Manifest
from services.retriever.search_service import QueryOutcome, SearchAnswer, SearchService

ADMIN_METHODS = frozenset({"ListIndexes", "BuildIndex", "ActivateIndex"})
_SMALL_ANSWER = 300  # results; converting them to messages blocks the event loop for about 3 ms


class RetrieverServicer(rpc.RetrieverServicer):
    """Translates messages; ``SearchService`` makes every decision. The context is unused, because REST has none."""

    def __init__(self, service: SearchService) -> None:
        self._service = service

    async def Search(self, request: pb.SearchRequest, context: grpc.aio.ServicerContext | None) -> pb.SearchResponse:
        top_k = request.top_k if request.HasField("top_k") else None
        answer = await self._service.search(list(request.queries), top_k, request.mode, dict(request.filters))
        is_small = sum(len(outcome.results) for outcome in answer.outcomes) <= _SMALL_ANSWER
        return search_to_wire(answer) if is_small else await run_encoder(search_to_wire, answer)

    async def GetPassages(
        self, request: pb.GetPassagesRequest, context: grpc.aio.ServicerContext | None
    ) -> pb.GetPassagesResponse:
        found, missing, generation = await self._service.get_passages(list(request.ids))
        response = pb.GetPassagesResponse(missing=missing, generation=generation)
        await run_encoder(lambda: response.passages.extend(map(passage_to_wire, found)))
        return response

    async def ListIndexes(
        self, request: pb.ListIndexesRequest, context: grpc.aio.ServicerContext | None
    ) -> pb.ListIndexesResponse:
        indexes = self._service.list_indexes()
        return pb.ListIndexesResponse(
            indexes=[_to_wire(manifest, active) for manifest, active in indexes],
            interrupted_build=self._service.interrupted_build(),
        )

    async def BuildIndex(
        self, request: pb.BuildIndexRequest, context: grpc.aio.ServicerContext | None
    ) -> AsyncIterator[pb.BuildIndexProgress]:
        async for step in self._service.build_index(request.corpus, request.kind, request.activate):
            yield pb.BuildIndexProgress(phase=step.phase, done=step.done, total=step.total, generation=step.generation)

    async def ActivateIndex(
        self, request: pb.ActivateIndexRequest, context: grpc.aio.ServicerContext | None
    ) -> pb.ActivateIndexResponse:
        manifest = await self._service.activate_index(request.generation)
        return pb.ActivateIndexResponse(active=_to_wire(manifest, True))


def search_to_wire(answer: SearchAnswer) -> pb.SearchResponse:
    return pb.SearchResponse(queries=map(_results_to_wire, answer.outcomes), generation=answer.generation)


def _results_to_wire(outcome: QueryOutcome) -> pb.QueryResults:
    if outcome.failure is None:
        return pb.QueryResults(results=map(result_to_wire, outcome.results))
    failure = outcome.failure
    shown = pb.QueryFailure(
        kind=failure.kind.value, message=failure.message, retry_after_seconds=failure.retry_after_seconds
    )
    return pb.QueryResults(error=failure.text, failure=shown)


def _to_wire(manifest: Manifest, active: bool) -> pb.IndexGeneration:
    return pb.IndexGeneration(
        generation=manifest.generation,
        kind=manifest.kind,
        passages=manifest.passages,
        corpus_sha256=manifest.corpus.sha256,
        created=manifest.created,
        active=active,
    )
