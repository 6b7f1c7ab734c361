"""Derives Pydantic models from protobuf descriptors, for validation and OpenAPI."""

from functools import cache
from typing import Annotated, Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, create_model

# Protobuf's JSON form writes 64-bit integers as text, because JavaScript's numbers are exact up to 2**53 only; it reads
# numbers too. The serializer only describes answers: the models parse requests alone.
_Integer64 = Annotated[int, PlainSerializer(str, return_type=str, when_used="json")]

_SCALARS: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: _Integer64,
    FieldDescriptor.CPPTYPE_UINT32: int,
    FieldDescriptor.CPPTYPE_UINT64: _Integer64,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    # Fields of type bytes too: protobuf's JSON form writes them as base64 text.
    FieldDescriptor.CPPTYPE_STRING: str,
    # The JSON form writes the name of the value; ParseDict checks it.
    FieldDescriptor.CPPTYPE_ENUM: str,
}


def model_of(message: type[Message]) -> type[BaseModel]:
    """Return a model with the message's field names; it refuses unknown fields."""
    return _model(message.DESCRIPTOR)


# OpenAPI needs one class for each message: two classes of one name would become two schemas with long, qualified names.
# No message may contain itself, as this recursion would not end.
@cache
def _model(descriptor: Descriptor) -> type[BaseModel]:
    fields: dict[str, Any] = {field.name: _field(field) for field in descriptor.fields}
    return create_model(descriptor.name, __config__=ConfigDict(extra="forbid"), **fields)


def _field(field: FieldDescriptor) -> tuple[Any, Any]:
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        value = _single(nested.fields_by_name["value"])
        return dict[str, value], Field(default_factory=dict)
    if field.is_repeated:
        return list[_single(field)], Field(default_factory=list)
    # None stands for "not sent" and is left out of the message, so that ``HasField`` stays False and the default
    # applies.
    if field.has_presence:
        return _single(field) | None, None
    return _single(field), field.default_value if not isinstance(field.default_value, bytes) else ""


def _single(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return _model(field.message_type)
    return _SCALARS[field.cpp_type]
