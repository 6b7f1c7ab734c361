"""Writes chat completion requests in the form that the server accepts, and learns that form from its refusals.

Servers that call themselves OpenAI-compatible differ in which fields they accept. Each difference is a setting. If it
is ``auto``, the first refusal (400 or 422) that names the field changes the form, and the change is kept once it has
helped.
"""

import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from searchrl.errors import ConfigurationError
from services.generator.engines.base import ChatMessage
from services.generator.engines.settings import ChatEngineSettings
from services.generator.engines.upstream_http import UpstreamReply

logger = logging.getLogger(__name__)

NEUTRAL_SAMPLING: Mapping[str, float] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Values without effect, sent so that a server's or model's own defaults (``generation_config.json``) do not apply."""

MAX_FUTILE_CHANGES = 3
"""Changes of a field that did not help, after which a refusal is no longer taken to be about that field."""


@dataclass(frozen=True, slots=True)
class RequestForm:
    """Which optional fields a server accepts, and under which name."""

    token_field: str = "max_tokens"
    has_temperature: bool = True
    has_stream_options: bool = True
    has_system_role: bool = True
    has_sampling_fields: bool = False


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One request, independent of the form in which it is sent."""

    messages: Sequence[ChatMessage]
    max_tokens: int
    temperature: float
    choices: Sequence[str] = ()
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """The part of requests that comes from the settings: their first form, and what each of them contains.

    Attributes:
        fixed: names of fields of ``RequestForm`` that no refusal changes.
        extra: further fields of the body; they take precedence.
        structured_outputs: the server accepts vLLM's field of that name.
    """

    form: RequestForm = RequestForm()
    fixed: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)
    # Not learned from refusals: a server that ignores the unknown field would answer freely, and nothing would show it.
    structured_outputs: bool = False


def read_request_settings(settings: ChatEngineSettings) -> RequestSettings:
    """Return how requests are written; a form that is set explicitly is never changed by what a server refuses.

    Raises:
        ConfigurationError: ``extra_body`` would replace the model, the messages or the kind of reply.
    """
    reserved = {"model", "messages", "stream"} & settings.extra_body.keys()
    if reserved:
        raise ConfigurationError(f"engine.extra_body: {', '.join(sorted(reserved))} cannot be set there")
    chosen: dict[str, str | bool] = {}
    if settings.token_field != "auto":
        chosen["token_field"] = settings.token_field
    for name, value in (
        ("has_temperature", settings.temperature_field),
        ("has_stream_options", settings.stream_options),
        ("has_system_role", settings.system_role),
        ("has_sampling_fields", settings.sampling_fields),
    ):
        if value != "auto":
            chosen[name] = value == "send"
    is_vllm = settings.kind == "vllm"
    extra = dict(settings.extra_body)
    # Both settings may name template variables; they are joined, and those in extra_body win, as all of extra_body
    # does.
    if settings.chat_template_kwargs:
        extra["chat_template_kwargs"] = settings.chat_template_kwargs | extra.get("chat_template_kwargs", {})
    form = replace(RequestForm(has_sampling_fields=is_vllm), **chosen)  # pyright: ignore[reportArgumentType]
    return RequestSettings(form, frozenset(chosen), extra, structured_outputs=is_vllm or settings.structured_outputs)


class RequestWriter:
    """Writes requests to one server; all requests share what was learned.

    Requests run concurrently in one event loop. Each tries changes on its own copy of the form; ``form`` is replaced in
    one assignment, so no request sees a form that is half changed.
    """

    def __init__(self, settings: ChatEngineSettings) -> None:
        self._model = settings.model
        self._settings = read_request_settings(settings)
        self._futile: Counter[str] = Counter()
        self.form = self._settings.form

    def body(self, call: ChatCall, form: RequestForm) -> dict[str, Any]:
        """Return the JSON body of a request."""
        messages = call.messages if form.has_system_role else fold_system(call.messages)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            form.token_field: call.max_tokens,
        }
        if form.has_temperature:
            body["temperature"] = call.temperature
        if form.has_sampling_fields:
            body |= NEUTRAL_SAMPLING
        # A stream reports its usage only on request (OpenAI), and without it the token metrics would count nothing.
        if call.streamed:
            body["stream"] = True
            if form.has_stream_options:
                body["stream_options"] = {"include_usage": True}
        if call.choices and self._settings.structured_outputs:
            body["structured_outputs"] = {"choice": list(call.choices)}
        return {**body, **self._settings.extra}

    async def send(self, post: Callable[[RequestForm], Awaitable[UpstreamReply]]) -> UpstreamReply:
        """Post in the known form, and in another one as long as a refusal names a field that can be changed.

        Each change is made at most once, so this ends. A change has helped if the server then accepts the request, or
        refuses it for another reason.
        """
        # An example, for a model that takes neither max_tokens nor a temperature:
        #   post 1  max_tokens, temperature             400 names max_tokens: rename it
        #   post 2  max_completion_tokens, temperature  400 names temperature: that helped, keep it; omit this one
        #   post 3  max_completion_tokens               200: that helped, keep it
        # Later requests start with the form of post 3. With five fields a request is posted six times at most.
        form, changed = self.form, ""
        done: set[str] = set()
        while True:
            answer = await post(form)
            if answer.status in _NOT_ABOUT_FIELDS:
                return answer
            named = self._find_named_fields(answer)
            if changed and changed in named:
                # The server still complains about the same field, so its message was about something else in it. The
                # changed form is dropped, so that a mistake of one caller does not change the requests of others.
                self._futile[changed] += 1
                return answer
            if changed:
                self._keep(changed, getattr(form, changed))
            # In the order of ``_RECOGNIZERS``: fields that are named literally come before the system role, whose
            # messages vary most.
            changed = next((name for name in named if name not in done and self._may_change(name, form)), "")
            if not changed:
                return answer
            done.add(changed)
            form = replace(form, **{changed: _ALTERNATIVES[changed]})

    def learn(self, name: str, value: str | bool) -> None:
        """Set a field that was determined by other means; a fixed field is not changed."""
        if name not in self._settings.fixed:
            self._keep(name, value)

    def _find_named_fields(self, answer: UpstreamReply) -> list[str]:
        """Return the fields that a refusal names; none for a success or another refusal."""
        if answer.status < 400:
            return []
        text = answer.content[:8000].decode(errors="replace")  # a server's message; it bounds the time of the patterns
        return [name for name, is_named in _RECOGNIZERS.items() if is_named(text)]

    def _may_change(self, name: str, form: RequestForm) -> bool:
        is_fixed = name in self._settings.fixed
        return not is_fixed and getattr(form, name) != _ALTERNATIVES[name] and self._futile[name] < MAX_FUTILE_CHANGES

    def _keep(self, name: str, value: str | bool) -> None:
        if getattr(self.form, name) != value:
            self.form = replace(self.form, **{name: value})  # pyright: ignore[reportArgumentType]
            logger.info("%s accepts requests in another form", self._model, extra={"data": {name: value}})


def fold_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Put the system messages in front of the first user message, for models without a system role."""
    system = "\n\n".join(message.content for message in messages if message.role in _SYSTEM_ROLES)
    others = [message for message in messages if message.role not in _SYSTEM_ROLES]
    if not system:
        return others
    first = next((place for place, message in enumerate(others) if message.role == "user"), None)
    if first is None:
        return [ChatMessage("user", system), *others]
    others[first] = ChatMessage("user", f"{system}\n\n{others[first].content}")
    return others


# OpenAI's newer models call the system role developer.
_SYSTEM_ROLES = frozenset({"system", "developer"})
# Statuses about keys, addresses, load or outages: whatever their text says, another form of the request does not help.
_NOT_ABOUT_FIELDS = frozenset({401, 403, 404, 408, 429, 502, 503, 504})
_ALTERNATIVES: Mapping[str, Any] = {
    "token_field": "max_completion_tokens",
    "has_temperature": False,
    "has_stream_options": False,
    "has_system_role": False,
    "has_sampling_fields": False,
}
# Refusals have no common form. These are phrases of model servers and their validators (pydantic: "Extra inputs are
# not permitted") and others for a field that they do not take. A field counts as refused only if its name stands in the
# same message.
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:\w+ )?(?:support|permitted|allowed|accepted|recogni[sz]ed|implemented)|n't support"
    r"|unknown|unrecogni[sz]ed|unexpected|forbidden|extra (?:input|field|key)|deprecated|invalid (?:param|field|arg)"
    r"|only the default|no longer|instead|cannot be (?:used|set|specified)|not a valid",
    re.IGNORECASE,
)
# A value out of range is an error of the caller; omitting the field would hide it.
_OUT_OF_RANGE = re.compile(
    r"too (?:large|long|small|many|high|low)|context (?:length|window|size)|between|range|exceed"
    r"|(?:less|greater|larger|smaller) than|at (?:most|least)|maximum|minimum|<=|>=",
    re.IGNORECASE,
)
# Chat templates refuse the role by raising an error of their own ("System role not supported", "Conversation roles must
# alternate user/assistant/..."), and validators name the allowed roles or the place ("messages.0.role").
_SYSTEM_REFUSED = re.compile(
    r"system[\s'\"_-]*(?:role|message|prompt|instruction)|role[s]?\b.{0,40}\bsystem|(?:developer|system) instruction"
    r"|roles must alternate|only (?:the )?['\"]?user|['\"]role['\"]|messages?\W+\d+\W+role",
    re.IGNORECASE | re.DOTALL,
)
_ROLE_UNSUPPORTED = re.compile(r"should be|must be|must alternate|one of|only|invalid|not enabled", re.IGNORECASE)


def _names_token_field(text: str) -> bool:
    return "max_tokens" in text and bool(_UNSUPPORTED.search(text)) and not _OUT_OF_RANGE.search(text)


def _names_temperature(text: str) -> bool:
    return "temperature" in text and bool(_UNSUPPORTED.search(text)) and not _OUT_OF_RANGE.search(text)


def _names_system_role(text: str) -> bool:
    if not _SYSTEM_REFUSED.search(text):
        return False
    return bool(_UNSUPPORTED.search(text) or _ROLE_UNSUPPORTED.search(text))


def _names_sampling(text: str) -> bool:
    return any(name in text for name in NEUTRAL_SAMPLING) and bool(_UNSUPPORTED.search(text))


_RECOGNIZERS: Mapping[str, Callable[[str], bool]] = {
    "token_field": _names_token_field,
    "has_stream_options": lambda text: "stream_options" in text and bool(_UNSUPPORTED.search(text)),
    "has_sampling_fields": _names_sampling,
    "has_temperature": _names_temperature,
    "has_system_role": _names_system_role,
}
