from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MethodSpec(_message.Message):
    __slots__ = ("method", "label", "temperature", "top_k", "max_searches", "seed")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_SEARCHES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    method: str
    label: str
    temperature: float
    top_k: int
    max_searches: int
    seed: int
    def __init__(self, method: _Optional[str] = ..., label: _Optional[str] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., max_searches: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("run_id", "questions", "methods", "limit", "concurrency", "controls", "retry_failures", "allow_unscored", "keep_trajectories", "allow_changes")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FAILURES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNSCORED_FIELD_NUMBER: _ClassVar[int]
    KEEP_TRAJECTORIES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_CHANGES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    questions: str
    methods: _containers.RepeatedCompositeFieldContainer[MethodSpec]
    limit: int
    concurrency: int
    controls: bool
    retry_failures: bool
    allow_unscored: bool
    keep_trajectories: bool
    allow_changes: bool
    def __init__(self, run_id: _Optional[str] = ..., questions: _Optional[str] = ..., methods: _Optional[_Iterable[_Union[MethodSpec, _Mapping]]] = ..., limit: _Optional[int] = ..., concurrency: _Optional[int] = ..., controls: _Optional[bool] = ..., retry_failures: _Optional[bool] = ..., allow_unscored: _Optional[bool] = ..., keep_trajectories: _Optional[bool] = ..., allow_changes: _Optional[bool] = ...) -> None: ...

class MetricValue(_message.Message):
    __slots__ = ("name", "mean", "low", "high", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    mean: float
    low: float
    high: float
    count: int
    def __init__(self, name: _Optional[str] = ..., mean: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class MethodResult(_message.Message):
    __slots__ = ("label", "done", "failed", "total", "metrics", "lost", "not_applicable")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    NOT_APPLICABLE_FIELD_NUMBER: _ClassVar[int]
    label: str
    done: int
    failed: int
    total: int
    metrics: _containers.RepeatedCompositeFieldContainer[MetricValue]
    lost: int
    not_applicable: int
    def __init__(self, label: _Optional[str] = ..., done: _Optional[int] = ..., failed: _Optional[int] = ..., total: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[MetricValue, _Mapping]]] = ..., lost: _Optional[int] = ..., not_applicable: _Optional[int] = ...) -> None: ...

class ProvenanceValue(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class EvaluationRun(_message.Message):
    __slots__ = ("run_id", "state", "questions_sha256", "index_generation", "methods", "error", "created", "reason", "provenance")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_SHA256_FIELD_NUMBER: _ClassVar[int]
    INDEX_GENERATION_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    state: str
    questions_sha256: str
    index_generation: str
    methods: _containers.RepeatedCompositeFieldContainer[MethodResult]
    error: str
    created: str
    reason: str
    provenance: _containers.RepeatedCompositeFieldContainer[ProvenanceValue]
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[str] = ..., questions_sha256: _Optional[str] = ..., index_generation: _Optional[str] = ..., methods: _Optional[_Iterable[_Union[MethodResult, _Mapping]]] = ..., error: _Optional[str] = ..., created: _Optional[str] = ..., reason: _Optional[str] = ..., provenance: _Optional[_Iterable[_Union[ProvenanceValue, _Mapping]]] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[EvaluationRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[EvaluationRun, _Mapping]]] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ("run_id", "format")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    format: str
    def __init__(self, run_id: _Optional[str] = ..., format: _Optional[str] = ...) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("format", "content")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    format: str
    content: bytes
    def __init__(self, format: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...
