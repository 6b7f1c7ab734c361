"""Client of the retriever over gRPC; implements the searcher port of the search loop."""

from collections.abc import AsyncIterator, Mapping, Sequence

from searchrl.clients.call_errors import QueryFailed
from searchrl.clients.channel import Tls
from searchrl.clients.service_client import ServiceClient
from searchrl.contracts.v1 import retriever_pb2 as pb
from searchrl.contracts.v1.retriever_pb2_grpc import RetrieverStub
from searchrl.domain.passage import Passage, SearchResult
from searchrl.errors import ErrorKind, ServiceError
from searchrl.platform.retry import RetryPolicy
from searchrl.wire.record_codec import passage_from_wire, results_from_wire


class RetrieverClient(ServiceClient[RetrieverStub]):
    """Typed calls to the retriever at ``target`` ("host:port"); implements ``searchrl.agent.types.Searcher``."""

    def __init__(
        self,
        target: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        mode: str = "",
        tls: Tls | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        super().__init__(target, RetrieverStub, key=key, timeout_seconds=timeout_seconds, tls=tls, retries=retries)
        self.mode = mode

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        """Return one list of results per query, best first.

        Raises:
            ServiceError: the call or any of its queries failed; a failure is never returned as an empty list.
        """
        results, _ = await self.search_with_generation(queries, top_k, filters)
        return results

    async def search_with_generation(
        self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]
    ) -> tuple[list[list[SearchResult]], str]:
        """Like ``search``; also returns the index generation that answered."""
        request = pb.SearchRequest(queries=queries, top_k=top_k, mode=self.mode, filters=dict(filters))
        response = await self._channel.unary(lambda stub: stub.Search, request)
        if len(response.queries) != len(queries):
            raise ServiceError(f"the retriever answered {len(response.queries)} of {len(queries)} queries")
        for query, answer in zip(queries, response.queries, strict=True):
            # ``error`` is the older form; both are set by our servers.
            if answer.HasField("failure") or answer.error:
                raise _query_error(query, answer)
        return [results_from_wire(answer.results) for answer in response.queries], response.generation

    async def get_passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return passages in the order of ``ids``; unknown ids are omitted."""
        passages, _ = await self.get_passages_with_generation(ids)
        return passages

    async def get_passages_with_generation(self, ids: Sequence[str]) -> tuple[list[Passage], str]:
        """Like ``get_passages``; also returns the index generation of the passages."""
        response = await self._channel.unary(lambda stub: stub.GetPassages, pb.GetPassagesRequest(ids=ids))
        return [passage_from_wire(passage) for passage in response.passages], response.generation

    async def list_indexes(self) -> list[pb.IndexGeneration]:
        """Return every index generation; needs an admin key."""
        response = await self._channel.unary(lambda stub: stub.ListIndexes, pb.ListIndexesRequest())
        return list(response.indexes)

    def build_index(self, corpus: str, kind: str, *, activate: bool = False) -> AsyncIterator[pb.BuildIndexProgress]:
        """Build a generation from a corpus file, and yield the progress; needs an admin key.

        Args:
            corpus: path as the retriever sees it.

        The client's timeout does not apply, because a build may take hours.
        """
        request = pb.BuildIndexRequest(corpus=corpus, kind=kind, activate=activate)
        return self._channel.stream(lambda stub: stub.BuildIndex, request, unlimited=True)

    async def activate_index(self, generation: str) -> pb.IndexGeneration:
        """Make ``generation`` the one that answers, after it is read and verified; needs an admin key."""
        request = pb.ActivateIndexRequest(generation=generation)
        return (await self._channel.unary(lambda stub: stub.ActivateIndex, request, unlimited=True)).active


def _query_error(query: str, answer: pb.QueryResults) -> QueryFailed:
    """Build the error of one query; an unknown kind counts as an outage of the retriever."""
    kind = ErrorKind(answer.failure.kind) if answer.failure.kind in set(ErrorKind) else ErrorKind.UNAVAILABLE
    message = f"query {query[:80]!r} failed: {answer.failure.message or answer.error}"
    later = answer.failure.retry_after_seconds if answer.failure.HasField("retry_after_seconds") else None
    return QueryFailed(message, later, kind)
