"""Random protobuf messages from their descriptors: of any content that the wire can carry, sensible texts among it."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

TEXTS = (
    "",
    " ",
    "a",
    "rag",
    "direct",
    "bm25",
    "q",
    "r1",
    "/dev/null",
    "../x",
    "\x00",
    "%s",
    "é",
    "e\u0301",
    "字",
    "🎈",
    "x" * 5000,
)
"""Beside random ones."""
DEPTH = 3

INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def messages(kind: type[Message], texts: Sequence[str] = ()) -> st.SearchStrategy[Message]:
    """Messages of one kind; ``texts`` are tried as values of text fields, too."""
    return _fields(kind.DESCRIPTOR, tuple(texts), DEPTH).map(lambda fields: _filled(kind(), fields))


def _fields(descriptor: Any, texts: tuple[str, ...], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    usable = [field for field in descriptor.fields if depth or field.message_type is None]
    return st.fixed_dictionaries({}, optional={field.name: _value(field, texts, depth) for field in usable})


def _value(field: FieldDescriptor, texts: tuple[str, ...], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(_single(entry["key"], texts, 0), _single(entry["value"], texts, depth - 1), max_size=3)
    single = _single(field, texts, depth)
    return st.lists(single, max_size=4) if field.is_repeated else single


def _single(field: FieldDescriptor, texts: tuple[str, ...], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _fields(field.message_type, texts, depth - 1)
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        return st.sampled_from([0, 1, 2, low, high]) | st.integers(low, high)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats(width=32)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.enum_type is not None:
        return st.integers(-(2**31), 2**31 - 1) | st.sampled_from([value.number for value in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=50)
    return st.sampled_from([*TEXTS, *texts]) | st.text(max_size=50)


def _filled(message: Message, fields: dict[str, Any]) -> Message:
    for name, value in fields.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if field.message_type is None:
            if field.is_repeated:
                target.extend(value)
            else:
                setattr(message, name, value)
        elif field.message_type.GetOptions().map_entry:
            _fill_map(target, field.message_type.fields_by_name["value"], value)
        elif field.is_repeated:
            for part in value:
                _filled(target.add(), part)
        else:
            target.SetInParent()
            _filled(target, value)
    return message


def _fill_map(target: Any, kind: Any, value: dict[Any, Any]) -> None:
    for key, part in value.items():
        if kind.message_type is None:
            target[key] = part
        else:
            _filled(target[key], part)
