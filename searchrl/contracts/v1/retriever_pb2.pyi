from searchrl.contracts.v1 import passage_pb2 as _passage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchRequest(_message.Message):
    __slots__ = ("queries", "top_k", "mode", "filters")
    class FiltersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    mode: str
    filters: _containers.ScalarMap[str, str]
    def __init__(self, queries: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., mode: _Optional[str] = ..., filters: _Optional[_Mapping[str, str]] = ...) -> None: ...

class QueryFailure(_message.Message):
    __slots__ = ("kind", "message", "retry_after_seconds")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    retry_after_seconds: float
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class QueryResults(_message.Message):
    __slots__ = ("results", "error", "failure")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[_passage_pb2.SearchResult]
    error: str
    failure: QueryFailure
    def __init__(self, results: _Optional[_Iterable[_Union[_passage_pb2.SearchResult, _Mapping]]] = ..., error: _Optional[str] = ..., failure: _Optional[_Union[QueryFailure, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("queries", "generation")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[QueryResults]
    generation: str
    def __init__(self, queries: _Optional[_Iterable[_Union[QueryResults, _Mapping]]] = ..., generation: _Optional[str] = ...) -> None: ...

class GetPassagesRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class GetPassagesResponse(_message.Message):
    __slots__ = ("passages", "missing", "generation")
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    passages: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    missing: _containers.RepeatedScalarFieldContainer[str]
    generation: str
    def __init__(self, passages: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ..., generation: _Optional[str] = ...) -> None: ...

class ListIndexesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IndexGeneration(_message.Message):
    __slots__ = ("generation", "kind", "passages", "corpus_sha256", "created", "active")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    CORPUS_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    generation: str
    kind: str
    passages: int
    corpus_sha256: str
    created: str
    active: bool
    def __init__(self, generation: _Optional[str] = ..., kind: _Optional[str] = ..., passages: _Optional[int] = ..., corpus_sha256: _Optional[str] = ..., created: _Optional[str] = ..., active: _Optional[bool] = ...) -> None: ...

class ListIndexesResponse(_message.Message):
    __slots__ = ("indexes", "interrupted_build")
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTED_BUILD_FIELD_NUMBER: _ClassVar[int]
    indexes: _containers.RepeatedCompositeFieldContainer[IndexGeneration]
    interrupted_build: str
    def __init__(self, indexes: _Optional[_Iterable[_Union[IndexGeneration, _Mapping]]] = ..., interrupted_build: _Optional[str] = ...) -> None: ...

class BuildIndexRequest(_message.Message):
    __slots__ = ("corpus", "kind", "activate")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    kind: str
    activate: bool
    def __init__(self, corpus: _Optional[str] = ..., kind: _Optional[str] = ..., activate: _Optional[bool] = ...) -> None: ...

class BuildIndexProgress(_message.Message):
    __slots__ = ("phase", "done", "total", "generation")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    phase: str
    done: int
    total: int
    generation: str
    def __init__(self, phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., generation: _Optional[str] = ...) -> None: ...

class ActivateIndexRequest(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: str
    def __init__(self, generation: _Optional[str] = ...) -> None: ...

class ActivateIndexResponse(_message.Message):
    __slots__ = ("active",)
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    active: IndexGeneration
    def __init__(self, active: _Optional[_Union[IndexGeneration, _Mapping]] = ...) -> None: ...
