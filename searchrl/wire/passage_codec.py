"""Converts passages and search results between the domain and the wire."""

from collections.abc import Iterable

from searchrl.contracts.v1 import passage_pb2 as pb
from searchrl.domain.passage import Passage, SearchResult


def passage_to_wire(passage: Passage) -> pb.Passage:
    return pb.Passage(id=passage.id, title=passage.title, text=passage.text, metadata=dict(passage.metadata))


def passage_from_wire(message: pb.Passage) -> Passage:
    return Passage(message.id, message.title, message.text, dict(message.metadata))


def result_to_wire(result: SearchResult) -> pb.SearchResult:
    return pb.SearchResult(passage=passage_to_wire(result.passage), score=result.score, rank=result.rank)


def result_from_wire(message: pb.SearchResult) -> SearchResult:
    return SearchResult(passage_from_wire(message.passage), message.score, message.rank)


def results_from_wire(messages: Iterable[pb.SearchResult]) -> list[SearchResult]:
    return [result_from_wire(message) for message in messages]
