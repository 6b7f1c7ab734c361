"""Reads conversations and texts from rows of public formats, and says which messages are trained.

Rows have ``messages`` as OpenAI and TRL write them, with ``tool_calls``, messages of role ``tool`` and a list of
``tools``, or ``prompt`` and ``completion``: two lists of messages, or two texts. Trajectories of a run are token ids
already.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from searchrl.datasets.row import BadRow, Row, describe
from searchrl.input_files import parse_json
from searchrl.tokenization.chat_template import RESERVED_ARGUMENTS

Message = Mapping[str, Any]
ASSISTANT = "assistant"
SCORED = "Reward"  # outcome of a trajectory that counts, as the trainer writes it


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a chat template reads them.

    Attributes:
        trained: indices of the assistant's messages that are trained; at least one.
        variables: further inputs of the template: the tools, and the row's own arguments.
    """

    messages: Sequence[Message]
    trained: Sequence[int]
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextPair:
    """A prompt and the text that the model shall continue it with, without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The token ids of a trajectory, and which of them the policy sampled."""

    ids: Sequence[int]
    mask: Sequence[bool]


RowContent = Conversation | TextPair | SampledTokens


def read_row(row: Row) -> RowContent:
    """Return what a row holds.

    Raises:
        BadRow: it has none of the formats, a message cannot be used, or nothing in it is trained.
    """
    if "ids" in row and "mask" in row:
        return _sampled_tokens(row)
    variables = _template_variables(row)
    if "messages" in row:
        return _conversation(_messages("messages", row.get("messages")), 0, variables)
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion:
            raise BadRow("the completion is empty")
        return TextPair(prompt, completion)
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _messages("prompt", prompt)
        return _conversation([*before, *_messages("completion", completion)], len(before), variables)
    if "prompt" in row or "completion" in row:
        raise BadRow(
            "'prompt' and 'completion' must be two texts or two lists of messages, found "
            f"{describe(prompt)} and {describe(completion)}"
        )
    raise BadRow(f"needs 'messages', or 'prompt' and 'completion', found the keys {', '.join(row.keys) or 'none'}")


def _sampled_tokens(row: Row) -> SampledTokens:
    if row.get("outcome") not in (None, SCORED):
        raise BadRow(
            f"the rollout was not scored, its outcome is {describe(row.get('outcome'))}; 'searchrl trajectories "
            "export' leaves such rollouts out"
        )
    ids, mask = row.get("ids"), row.get("mask")
    if not isinstance(ids, list) or not isinstance(mask, list) or len(ids) != len(mask):
        raise BadRow(f"'ids' and 'mask' must be lists of one length, found {describe(ids)} and {describe(mask)}")
    if not all(type(token_id) is int for token_id in ids) or not all(type(each) is bool for each in mask):
        raise BadRow("'ids' must be numbers of tokens, and 'mask' true or false")
    if not any(mask):
        raise BadRow("the policy sampled none of the tokens")
    return SampledTokens(ids, mask)


def _conversation(given: Sequence[tuple[Message, bool]], first: int, variables: Mapping[str, Any]) -> Conversation:
    """Train the assistant's messages from the index ``first`` on, except those of weight 0."""
    messages = [message for message, _ in given]
    trained = [
        index
        for index, (message, has_weight) in enumerate(given)
        if index >= first and has_weight and message["role"] == ASSISTANT
    ]
    if not trained:
        raise BadRow("no message of the assistant is trained")
    return Conversation(messages, trained, variables)


def _template_variables(row: Row) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    given = row.get("chattemplatekwargs")
    if given is not None:
        if not isinstance(given, Mapping):
            raise BadRow(f"'chat_template_kwargs' must be an object, found {describe(given)}")
        if reserved := sorted(RESERVED_ARGUMENTS & set(given)):
            raise BadRow(f"'chat_template_kwargs' cannot set {reserved[0]}")
        variables.update(given)
    tools = row.get("tools")
    if isinstance(tools, str):  # files with one type per column hold them as JSON
        tools = _parse("'tools'", tools)
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRow(f"'tools' must be a list of objects, found {describe(tools)}")
    if tools:
        variables["tools"] = tools
    return variables


def _messages(key: str, value: object) -> list[tuple[Message, bool]]:
    """Return each message with whether it counts in the loss."""
    if isinstance(value, str):
        value = _parse(f"'{key}'", value)
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{key}' must be a list of messages, found {describe(value)}")
    return [_message(f"message {number} of '{key}'", entry) for number, entry in enumerate(value, start=1)]


def _message(where: str, entry: object) -> tuple[Message, bool]:
    if not isinstance(entry, Mapping):
        raise BadRow(f"{where} must be an object, found {describe(entry)}")
    values = {str(name): value for name, value in entry.items() if value is not None}
    role = values.get("role")
    if not isinstance(role, str) or not role:
        raise BadRow(f"{where} needs a role, found {describe(entry)}")
    weight = values.pop("weight", 1)  # of OpenAI's fine-tuning rows
    if weight not in (0, 1):
        raise BadRow(f"{where}: weight must be 0 or 1, found {describe(weight)}")
    if "tool_calls" in values:
        values["tool_calls"] = _tool_calls(where, values["tool_calls"])
        if not values["tool_calls"]:
            del values["tool_calls"]
    values["content"] = _text(where, values)
    if role == ASSISTANT and not values["content"] and "tool_calls" not in values:
        raise BadRow(f"{where} is the assistant's, and has neither text nor tool calls")
    return values, bool(weight)


def _text(where: str, values: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content may be missing beside tool calls, or a list of parts."""
    content = values.get("content", "" if "tool_calls" in values or values["role"] == ASSISTANT else None)
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        spoken = [text for text in texts if isinstance(text, str)]
        if len(spoken) == len(content):
            return "".join(spoken)
        raise BadRow(f"{where}: only parts of text can be trained, found {describe(content)}")
    if not isinstance(content, str):
        raise BadRow(f"{where} needs a text as content, found {describe(content)}")
    return content


def _tool_calls(where: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(call, Mapping) for call in value):
        raise BadRow(f"{where}: 'tool_calls' must be a list of objects, found {describe(value)}")
    return [_tool_call(f"{where}, tool call {number}", call) for number, call in enumerate(value, start=1)]


def _tool_call(where: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are an object, as templates of models print them; OpenAI's rows have JSON text."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where} needs a function with a name, found {describe(function)}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parse(f"{where}: arguments", arguments or "{}")
    if not isinstance(arguments, Mapping):
        raise BadRow(f"{where}: arguments must be an object, found {describe(arguments)}")
    return {**call, "function": {**function, "arguments": dict(arguments)}}


def _parse(what: str, text: str) -> object:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"{what} must be JSON, found {describe(text)}: {error}") from error
    except ValueError as error:
        raise BadRow(f"{what} must be JSON: {error}") from error
