"""Parses replies of an OpenAI-compatible server, complete or in chunks, by the same rules.

| text (thoughts left out) | the model stopped because | outcome |
|---|---|---|
| some | anything | the reply; ``finish_reason`` says whether it was truncated |
| none | its tokens were used up (``length``) | invalid: the budget is too small for its reasoning |
| none, but a thought | its turn ended | invalid: the server's reasoning parser took the answer, or there is none |
| none, no thought | its turn ended after tokens were written | an empty reply: the model has no answer |
| none | the content filter, or a call of a tool | invalid: it would happen again |
| none | no token was written | unavailable, worth another attempt |
| any | the server ended it (``abort``, ``error``) | unavailable, worth another attempt |
"""

from collections.abc import Mapping
from typing import Any

import orjson

from searchrl.domain.thoughts import strip_thoughts
from searchrl.errors import InvalidRequest, Unavailable
from services.generator.engines.base import ChatReply
from services.generator.engines.upstream_http import find_error_message

_ABORTED = frozenset({"abort", "aborted", "error", "cancelled"})
_REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
# Names of other servers for OpenAI's reasons: Mistral, Gemini, Claude, Text Generation Inference, Cohere.
_FINISH_REASONS = {
    "max_tokens": "length", "model_length": "length", "max_output_tokens": "length", "token_limit": "length",
    "end_turn": "stop", "stop_sequence": "stop", "eos": "stop", "eos_token": "stop", "complete": "stop",
    "safety": "content_filter", "refusal": "content_filter", "recitation": "content_filter",
}  # fmt: skip


class ReplyReader:
    """Collects one reply, complete or in chunks.

    Attributes:
        raw: the text with the thoughts in it.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._has_reasoning = False
        self._has_tool_calls = False
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self.raw = ""
        self.finish_reason = ""

    def read(self, content: bytes) -> None:
        """Read an entire completion.

        Raises:
            Unavailable: it is not a completion, or an error with a status of success.
        """
        try:
            completion = orjson.loads(content)
        except ValueError as error:
            raise Unavailable("the engine's reply is not JSON", None) from error
        choice = _first_choice(completion)
        # Some gateways report an error of the model behind them with status 200.
        if isinstance(completion, dict) and completion.get("error") and not choice.get("message"):
            raise Unavailable(f"the engine answered with an error: {find_error_message(content)}", None)
        if not isinstance(completion, dict) or not isinstance(choice.get("message"), dict):
            raise Unavailable("the engine's reply is not a chat completion", None)
        self._read(completion, choice, choice["message"])
        # A complete body shows that the reply has ended even if its reason is missing; a stream must name one.
        self.finish_reason = self.finish_reason or "stop"

    def add(self, chunk: Mapping[str, Any]) -> str:
        """Read a chunk; return the text it adds, thoughts included.

        Raises:
            Unavailable: the chunk is an error of the server.
        """
        if chunk.get("error"):
            raise Unavailable(f"the engine's stream failed: {find_error_message(orjson.dumps(chunk))}", None)
        choice = _first_choice(chunk)
        delta = choice.get("delta")
        return self._read(chunk, choice, delta if isinstance(delta, dict) else {})

    def finish(self, *, is_all_thought: bool = False) -> ChatReply:
        """Return the reply, by the table above; with ``is_all_thought`` the entire text is a truncated thought.

        Raises:
            InvalidRequest, Unavailable: there is no reply; see the table.
        """
        if not self.finish_reason:
            raise Unavailable("the engine's stream ended in the middle of its reply", None)
        if self.finish_reason in _ABORTED:
            raise Unavailable(f"the engine ended its reply itself ({self.finish_reason})", None)
        text = "" if is_all_thought else strip_thoughts(self.raw)
        if not text:
            self._check_empty(is_all_thought)
        return ChatReply(text, self._model, self._prompt_tokens, self._completion_tokens, self.finish_reason)

    def _check_empty(self, is_all_thought: bool) -> None:
        has_thought = self._has_reasoning or is_all_thought or bool(self.raw.strip())
        if self.finish_reason == "length":
            written = f"all {self._completion_tokens} answer tokens" if self._completion_tokens else "all answer tokens"
            if has_thought:
                raise InvalidRequest(
                    f"{written} of {self._model} went into reasoning; raise max_answer_tokens (judge.max_tokens for "
                    'the judge) or turn thinking off, e.g. by engine.chat_template_kwargs: {"enable_thinking": false}'
                )
            raise InvalidRequest(f"{written} of {self._model} were used up without any text; raise max_answer_tokens")
        if self.finish_reason == "content_filter":
            raise InvalidRequest(f"the content filter of {self._model} withheld the reply")
        if self._has_tool_calls:
            raise InvalidRequest(f"{self._model} called a tool in place of an answer")
        if has_thought:
            raise InvalidRequest(
                f"the reply of {self._model} is reasoning only, without an answer; turn thinking off, or check the "
                "reasoning parser of its server"
            )
        if not self._completion_tokens:
            raise Unavailable("the engine's reply is empty", None)

    def _read(self, body: Mapping[str, Any], choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
        if isinstance(body.get("model"), str):
            self._model = body["model"] or self._model
        # In a stream the usage is in one of the last chunks, or cumulative in each (vLLM's continuous_usage_stats), so
        # the last nonzero count is the total. A chunk with zeros does not erase it.
        usage = body.get("usage")
        if isinstance(usage, dict):
            self._prompt_tokens = _count(usage.get("prompt_tokens")) or self._prompt_tokens
            self._completion_tokens = _count(usage.get("completion_tokens")) or self._completion_tokens
            details = usage.get("completion_tokens_details")
            if isinstance(details, dict) and _count(details.get("reasoning_tokens")):
                self._has_reasoning = True
        if isinstance(choice.get("finish_reason"), str):
            reason = choice["finish_reason"].lower()
            self.finish_reason = _FINISH_REASONS.get(reason, reason) or self.finish_reason
        self._has_tool_calls |= bool(message.get("tool_calls") or message.get("function_call"))
        self._has_reasoning |= any(message.get(name) for name in _REASONING_FIELDS)
        text = self._text(message.get("content"))
        if not text and isinstance(message.get("refusal"), str):
            text = message["refusal"]  # the model's refusal is its answer; OpenAI sends it in a field of its own
        self.raw += text
        return text

    def _text(self, content: object) -> str:
        """Return the text of a message, which may have parts; parts that are thoughts count as reasoning."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            return ""
        texts: list[str] = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            # Parts are OpenAI's {type: text}, Anthropic's {type: thinking, thinking: ...} and Mistral's {type:
            # thinking, thinking: [...]}.
            elif isinstance(part, dict) and isinstance(part.get("text"), str) and "think" not in str(part.get("type")):
                texts.append(part["text"])
            elif isinstance(part, dict) and ("thinking" in part or "reasoning" in str(part.get("type"))):
                self._has_reasoning = True
        return "".join(texts)


def _first_choice(body: object) -> Mapping[str, Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
