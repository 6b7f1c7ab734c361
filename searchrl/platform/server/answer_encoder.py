"""Encodes large answers in worker threads, so that the event loop keeps serving other requests.

Small messages are encoded in the event loop, large ones in one of two threads. The caller must not change a message
while a thread encodes it.
"""

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
_SMALL_BYTES = 64 << 10  # takes about 3 ms to encode, while handing it to a thread costs about 0.1 ms


async def run_encoder(encode: Callable[..., Encoded], *arguments: Any) -> Encoded:
    """Call ``encode`` in one of the encoder threads, with the caller's context variables; large answers queue there."""
    # ``run_in_executor`` does not pass the context on, unlike ``asyncio.to_thread``, which has no choice of the pool.
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(context.run, encode, *arguments))


async def encode_message(message: Message) -> bytes:
    """Encode a message as JSON; a large one in a worker thread."""
    if message.ByteSize() <= _SMALL_BYTES:
        return message_to_bytes(message)
    return await run_encoder(message_to_bytes, message)


def message_to_json(message: Message) -> dict[str, Any]:
    """Convert a message to JSON values: snake_case names, unset fields with their defaults."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def message_to_bytes(message: Message) -> bytes:
    """Encode a message as JSON text.

    Elements of lists are encoded one by one: as dictionaries, all of them together take many times the memory of the
    answer, and one call of the encoder holds the interpreter lock, which the event loop needs, until it returns.
    """
    rest, lists = type(message)(), dict[str, bytes]()
    for field, value in message.ListFields():
        if _is_list_of_messages(field):
            lists[field.name] = _list_to_bytes(value)
        elif field.is_repeated:  # maps too
            getattr(rest, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(rest, field.name).CopyFrom(value)
        else:
            setattr(rest, field.name, value)
    # ``rest`` has the empty lists as defaults, so the union replaces them and keeps the order of the fields.
    fields = {name: orjson.dumps(value) for name, value in message_to_json(rest).items()} | lists
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items()) + b"}"


def _list_to_bytes(messages: Sequence[Message]) -> bytes:
    return b"[" + b",".join(orjson.dumps(message_to_json(message)) for message in messages) + b"]"


def _is_list_of_messages(field: FieldDescriptor) -> bool:
    return field.is_repeated and field.message_type is not None and not field.message_type.GetOptions().map_entry
