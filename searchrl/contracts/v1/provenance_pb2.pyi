from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Provenance(_message.Message):
    __slots__ = ("generator_model", "searcher_model", "searcher_version", "index_generations", "mode", "top_k", "template_hash", "max_context_tokens", "max_answer_tokens", "temperature")
    GENERATOR_MODEL_FIELD_NUMBER: _ClassVar[int]
    SEARCHER_MODEL_FIELD_NUMBER: _ClassVar[int]
    SEARCHER_VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    generator_model: str
    searcher_model: str
    searcher_version: str
    index_generations: _containers.RepeatedScalarFieldContainer[str]
    mode: str
    top_k: int
    template_hash: str
    max_context_tokens: int
    max_answer_tokens: int
    temperature: float
    def __init__(self, generator_model: _Optional[str] = ..., searcher_model: _Optional[str] = ..., searcher_version: _Optional[str] = ..., index_generations: _Optional[_Iterable[str]] = ..., mode: _Optional[str] = ..., top_k: _Optional[int] = ..., template_hash: _Optional[str] = ..., max_context_tokens: _Optional[int] = ..., max_answer_tokens: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...
