from searchrl.contracts.v1 import passage_pb2 as _passage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InformationBlock(_message.Message):
    __slots__ = ("query", "results", "selection", "claimed", "cut")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    query: str
    results: _containers.RepeatedCompositeFieldContainer[_passage_pb2.SearchResult]
    selection: _containers.RepeatedScalarFieldContainer[int]
    claimed: bool
    cut: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, query: _Optional[str] = ..., results: _Optional[_Iterable[_Union[_passage_pb2.SearchResult, _Mapping]]] = ..., selection: _Optional[_Iterable[int]] = ..., claimed: _Optional[bool] = ..., cut: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenRecord(_message.Message):
    __slots__ = ("ids", "mask", "logprobs", "versions", "kinds")
    IDS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    mask: _containers.RepeatedScalarFieldContainer[bool]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    versions: _containers.RepeatedScalarFieldContainer[int]
    kinds: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., mask: _Optional[_Iterable[bool]] = ..., logprobs: _Optional[_Iterable[float]] = ..., versions: _Optional[_Iterable[int]] = ..., kinds: _Optional[_Iterable[int]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("text", "action", "queries", "well_formed", "finish_reason")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    WELL_FORMED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    text: str
    action: str
    queries: _containers.RepeatedScalarFieldContainer[str]
    well_formed: bool
    finish_reason: str
    def __init__(self, text: _Optional[str] = ..., action: _Optional[str] = ..., queries: _Optional[_Iterable[str]] = ..., well_formed: _Optional[bool] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class Trajectory(_message.Message):
    __slots__ = ("question_id", "tokens", "turns", "blocks", "documents", "answer", "stop_reason", "well_formed")
    QUESTION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    WELL_FORMED_FIELD_NUMBER: _ClassVar[int]
    question_id: str
    tokens: TokenRecord
    turns: _containers.RepeatedCompositeFieldContainer[Turn]
    blocks: _containers.RepeatedCompositeFieldContainer[InformationBlock]
    documents: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    answer: str
    stop_reason: str
    well_formed: bool
    def __init__(self, question_id: _Optional[str] = ..., tokens: _Optional[_Union[TokenRecord, _Mapping]] = ..., turns: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ..., blocks: _Optional[_Iterable[_Union[InformationBlock, _Mapping]]] = ..., documents: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., answer: _Optional[str] = ..., stop_reason: _Optional[str] = ..., well_formed: _Optional[bool] = ...) -> None: ...
