"""Renders a conversation with a model's chat template, as transformers does, and tracks untrusted text."""

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from searchrl.domain.guarded_text import GuardedText, Span, untrusted_spans
from searchrl.errors import ConfigurationError

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which are not meant for interchange; they mark untrusted ranges while a template runs. They
are removed from all texts first, so no message can forge a mark."""
_WITHOUT_MARKS = {ord(_OPEN): None, ord(_CLOSE): None}
# Errors that a template's expressions raise: Jinja's own, and Python's for wrong types, ranges and keys.
_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
RESERVED_ARGUMENTS = frozenset({"messages", "add_generation_prompt", "tools", "documents"})


class _GenerationTag(Extension):
    """Renders the body of ``{% generation %}`` blocks, which mark text for training and have no effect here."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body in a scope of its own, so that its assignments end with it, as in transformers."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A Jinja template in a sandbox, with the functions and options that published templates rely on.

    Attributes:
        printed_date: the template has printed today's date, and no date was fixed, so its prompts change every day.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        arguments: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        """Compile the template.

        Args:
            special_tokens: the names that a template may print, such as ``bos_token``.
            arguments: further variables, such as ``enable_thinking``.
            today: the date that ``strftime_now`` prints; the current date by default.
        """
        # A template is code out of a downloaded file, so it runs in a sandbox. The options are those of transformers:
        # other rules for white space would give other prompts than those the model was trained with.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
        )
        # Jinja's own filter escapes <, >, & and ' for HTML; transformers replaces it likewise.
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = self._format_date
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigurationError(f"the chat template cannot be read: {error}") from error
        self.source = source
        self.printed_date = False
        self._today = today
        # None rather than undefined, as in transformers: templates ask `tools is not none`
        self._variables = {"tools": None, "documents": None, **special_tokens, **(arguments or {})}

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> GuardedText:
        """Return the text of a conversation, by default up to the start of the assistant's turn.

        Untrusted text of the messages is untrusted in the result, wherever the template puts it. To find it, the
        template runs twice: on the plain messages, and on messages whose untrusted ranges are marked. Both results must
        be equal without the marks; otherwise the template has changed or split the untrusted text.

        Raises:
            ConfigurationError: the template refuses these messages, or changes untrusted text beyond recognition.
        """
        plain = [{name: _plain(value) for name, value in message.items()} for message in messages]
        # The result without marks is the reference: a template may treat a text with marks in another way (its length,
        # its first character), and then the two results differ.
        text = self._run(plain, add_generation_prompt)
        if not any(untrusted_spans(value) for message in messages for value in message.values()):
            return GuardedText(text)
        marked = [{name: _mark(value) for name, value in message.items()} for message in messages]
        guarded = _unmark(self._run(marked, add_generation_prompt))
        if guarded is None or guarded != text:
            raise ConfigurationError(
                "the chat template rewrites the text of messages, so outside text cannot be distinguished from the "
                "template's own; use a template that prints messages unchanged"
            )
        return guarded

    def render_data(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], add_generation_prompt: bool
    ) -> str:
        """Return the text of a conversation of training data, whose messages may hold objects such as tool calls.

        Args:
            variables: further inputs of the template, such as ``tools``; they win over those of the model folder.

        Raises:
            ConfigurationError: the template refuses these messages.
        """
        return self._run(messages, add_generation_prompt, variables)

    def _run(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        given = {**self._variables, **(variables or {})}
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **given)
        except _FAILURES as error:
            raise ConfigurationError(f"the chat template refuses the messages: {error}") from error

    def _format_date(self, form: str) -> str:
        if self._today is None:
            self.printed_date = True
            return datetime.now().strftime(form)
        return datetime.combine(self._today, datetime.min.time()).strftime(form)


def find_chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """Return the template's source from ``chat_template.jinja`` or ``tokenizer_config.json``; None if there is none.

    Of several named templates the one called "default" is taken.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _plain(text: str) -> str:
    return str(text).translate(_WITHOUT_MARKS)


def _mark(text: str) -> str:
    """Put marks around untrusted ranges, inside their outer white space, so that a template can still trim it."""
    parts: list[str] = []
    position = 0
    for start, end in untrusted_spans(text):
        outside = _plain(text[start:end])
        core = outside.strip()
        # The first occurrence of the core is the core itself: only white space stands before it.
        before, _, after = outside.partition(core) if core else (outside, "", "")
        parts += [_plain(text[position:start]), before, f"{_OPEN}{core}{_CLOSE}" if core else "", after]
        position = end
    return "".join([*parts, _plain(text[position:])])


def _unmark(text: str) -> GuardedText | None:
    """Convert the marks to ranges; return None if they do not come in pairs."""
    parts: list[str] = []
    spans: list[Span] = []
    length = 0
    # With < and > for the marks, "a<bc>d<e>" is split into "a", "bc>d" and "e>": every piece but the first holds
    # exactly one closing mark. Half a pair means that the template cut a marked text.
    for number, piece in enumerate(text.split(_OPEN)):
        inside, closed, outside = piece.partition(_CLOSE)
        if (number > 0) != bool(closed) or _CLOSE in outside:
            return None
        if closed and inside:
            spans.append((length, length + len(inside)))
        parts += [inside, outside]
        length += len(inside) + len(outside)
    return GuardedText("".join(parts), tuple(spans))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)
