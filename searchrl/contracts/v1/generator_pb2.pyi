from searchrl.contracts.v1 import passage_pb2 as _passage_pb2
from searchrl.contracts.v1 import provenance_pb2 as _provenance_pb2
from searchrl.contracts.v1 import question_pb2 as _question_pb2
from searchrl.contracts.v1 import trajectory_pb2 as _trajectory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnswerRequest(_message.Message):
    __slots__ = ("question", "method", "top_k", "max_searches", "temperature", "seed", "with_trajectory")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_SEARCHES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WITH_TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    question: _question_pb2.Question
    method: str
    top_k: int
    max_searches: int
    temperature: float
    seed: int
    with_trajectory: bool
    def __init__(self, question: _Optional[_Union[_question_pb2.Question, _Mapping]] = ..., method: _Optional[str] = ..., top_k: _Optional[int] = ..., max_searches: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., with_trajectory: _Optional[bool] = ...) -> None: ...

class QueryStep(_message.Message):
    __slots__ = ("turn", "queries")
    TURN_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    turn: int
    queries: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, turn: _Optional[int] = ..., queries: _Optional[_Iterable[str]] = ...) -> None: ...

class DocumentsStep(_message.Message):
    __slots__ = ("turn", "query", "results")
    TURN_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    turn: int
    query: str
    results: _containers.RepeatedCompositeFieldContainer[_passage_pb2.SearchResult]
    def __init__(self, turn: _Optional[int] = ..., query: _Optional[str] = ..., results: _Optional[_Iterable[_Union[_passage_pb2.SearchResult, _Mapping]]] = ...) -> None: ...

class SelectionStep(_message.Message):
    __slots__ = ("turn", "passage_ids")
    TURN_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    turn: int
    passage_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, turn: _Optional[int] = ..., passage_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class TokensStep(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class FinalStep(_message.Message):
    __slots__ = ("answer", "citations", "documents", "searches", "prompt_tokens", "completion_tokens", "seconds", "stop_reason", "trajectory", "context_tokens", "policy_version", "provenance", "searcher_prompt_tokens", "searcher_completion_tokens", "finish_reason", "cut", "left_out")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CITATIONS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    SEARCHES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SEARCHER_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEARCHER_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    answer: str
    citations: _containers.RepeatedScalarFieldContainer[str]
    documents: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    searches: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    stop_reason: str
    trajectory: _trajectory_pb2.Trajectory
    context_tokens: int
    policy_version: str
    provenance: _provenance_pb2.Provenance
    searcher_prompt_tokens: int
    searcher_completion_tokens: int
    finish_reason: str
    cut: _containers.RepeatedScalarFieldContainer[str]
    left_out: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, answer: _Optional[str] = ..., citations: _Optional[_Iterable[str]] = ..., documents: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ..., searches: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., stop_reason: _Optional[str] = ..., trajectory: _Optional[_Union[_trajectory_pb2.Trajectory, _Mapping]] = ..., context_tokens: _Optional[int] = ..., policy_version: _Optional[str] = ..., provenance: _Optional[_Union[_provenance_pb2.Provenance, _Mapping]] = ..., searcher_prompt_tokens: _Optional[int] = ..., searcher_completion_tokens: _Optional[int] = ..., finish_reason: _Optional[str] = ..., cut: _Optional[_Iterable[str]] = ..., left_out: _Optional[_Iterable[str]] = ...) -> None: ...

class AnswerEvent(_message.Message):
    __slots__ = ("query", "documents", "selection", "tokens", "final")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    query: QueryStep
    documents: DocumentsStep
    selection: SelectionStep
    tokens: TokensStep
    final: FinalStep
    def __init__(self, query: _Optional[_Union[QueryStep, _Mapping]] = ..., documents: _Optional[_Union[DocumentsStep, _Mapping]] = ..., selection: _Optional[_Union[SelectionStep, _Mapping]] = ..., tokens: _Optional[_Union[TokensStep, _Mapping]] = ..., final: _Optional[_Union[FinalStep, _Mapping]] = ...) -> None: ...

class AnswerFromContextRequest(_message.Message):
    __slots__ = ("question", "passages")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    question: str
    passages: _containers.RepeatedCompositeFieldContainer[_passage_pb2.Passage]
    def __init__(self, question: _Optional[str] = ..., passages: _Optional[_Iterable[_Union[_passage_pb2.Passage, _Mapping]]] = ...) -> None: ...

class AnswerFromContextResponse(_message.Message):
    __slots__ = ("answer", "prompt_tokens", "completion_tokens", "model", "provenance", "finish_reason", "cut", "left_out")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    answer: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    provenance: _provenance_pb2.Provenance
    finish_reason: str
    cut: _containers.RepeatedScalarFieldContainer[str]
    left_out: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, answer: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., model: _Optional[str] = ..., provenance: _Optional[_Union[_provenance_pb2.Provenance, _Mapping]] = ..., finish_reason: _Optional[str] = ..., cut: _Optional[_Iterable[str]] = ..., left_out: _Optional[_Iterable[str]] = ...) -> None: ...

class JudgeRequest(_message.Message):
    __slots__ = ("question", "answer", "golden_answers", "choices")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    question: str
    answer: str
    golden_answers: _containers.RepeatedScalarFieldContainer[str]
    choices: _containers.RepeatedCompositeFieldContainer[_question_pb2.Choice]
    def __init__(self, question: _Optional[str] = ..., answer: _Optional[str] = ..., golden_answers: _Optional[_Iterable[str]] = ..., choices: _Optional[_Iterable[_Union[_question_pb2.Choice, _Mapping]]] = ...) -> None: ...

class JudgeResponse(_message.Message):
    __slots__ = ("correct", "decided_by", "judge_version", "prompt_tokens", "completion_tokens")
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    JUDGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    correct: bool
    decided_by: str
    judge_version: str
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, correct: _Optional[bool] = ..., decided_by: _Optional[str] = ..., judge_version: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class ListMethodsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMethodsResponse(_message.Message):
    __slots__ = ("methods",)
    METHODS_FIELD_NUMBER: _ClassVar[int]
    methods: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, methods: _Optional[_Iterable[str]] = ...) -> None: ...
