"""Encodes large answers beside the event loop, so that everybody else is served meanwhile."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

Encoded = TypeVar("Encoded")

# Two: encoding holds the interpreter lock, so more threads would only keep more large answers in memory at once.
_THREADS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="answer-encoder")
_SMALL_BYTES = 64 << 10  # about 3 ms of encoding; a change of threads costs a tenth of one


async def run_encoder(encode: Callable[..., Encoded], *arguments: Any) -> Encoded:
    """Call ``encode`` in one of the encoders' threads; large answers wait for each other there."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(context.run, encode, *arguments))


async def encode_message(message: Message) -> bytes:
    """A message as JSON; a large one is encoded beside the event loop."""
    if message.ByteSize() <= _SMALL_BYTES:
        return message_to_bytes(message)
    return await run_encoder(message_to_bytes, message)


def message_to_json(message: Message) -> dict[str, Any]:
    """A message as JSON values: snake_case names, unset fields with their defaults."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def message_to_bytes(message: Message) -> bytes:
    """A message as JSON text.

    Elements of lists are encoded one by one: all of them as dictionaries take many times the memory of the answer, and
    a single call of the encoder holds the interpreter lock, which the event loop needs, to its end.
    """
    lists = [(field.name, elements) for field, elements in message.ListFields() if _is_list_of_messages(field)]
    if not lists:
        return orjson.dumps(message_to_json(message))
    rest = type(message)()
    rest.CopyFrom(message)
    for name, _ in lists:
        rest.ClearField(name)
    fields = {name: orjson.dumps(value) for name, value in message_to_json(rest).items()}
    fields |= {name: _list_to_bytes(elements) for name, elements in lists}
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items()) + b"}"


def _list_to_bytes(messages: Sequence[Message]) -> bytes:
    return b"[" + b",".join(orjson.dumps(message_to_json(message)) for message in messages) + b"]"


def _is_list_of_messages(field: FieldDescriptor) -> bool:
    return field.is_repeated and field.message_type is not None and not field.message_type.GetOptions().map_entry
