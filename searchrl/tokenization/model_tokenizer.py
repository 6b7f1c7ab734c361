"""Provides the tokenizer and chat template of a model folder: text to ids and back."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from searchrl.agent.profile import PROFILE_FILE
from searchrl.agent.types import Limits
from searchrl.domain.guarded_text import GuardedText, Span, untrusted_spans
from searchrl.errors import ConfigurationError
from searchrl.input_files import IS_POINTER, is_lfs_pointer
from searchrl.tokenization.chat_template import RESERVED_ARGUMENTS, ChatTemplate, find_chat_template
from searchrl.tokenization.control_tokens import break_marks, control_tokens, encode_guarded, find_textual_marks
from searchrl.tokenization.model_files import (
    ADAPTER_FILE,
    check_context,
    check_model_files,
    check_vocabulary,
    read_json,
)

REMEMBERED_TEXTS = 512
"""Encoded texts kept in memory: the rollouts of a group share their prompt and many of their observations.
With 1,400 tokens each, at 36 bytes a token (a pointer and an integer), they take about 26 MB."""
_PROBE = "Who wrote it & why?"
"""A user message to test a template with; its ``&`` reveals templates that escape HTML."""


class ModelTokenizer:
    """The search loop's ``Tokenizer`` (see ``agent.types``) over a Hugging Face ``tokenizer.json``.

    Attributes:
        eos_ids: every id that ends a generation.
        end_id: the one of them that the tokenizer itself names, or the only one; else None.
        pad_id: id for padding; if the model has none, its smallest end-of-sequence id, else 0.
        vocab_size: one more than the largest id, added tokens included.
        control_ids: ids that untrusted text never gets: control tokens, end of sequence, padding.
    """

    def __init__(
        self,
        tokenizer: FastTokenizer,
        eos_ids: frozenset[int],
        pad_id: int | None,
        template: ChatTemplate | None,
        end_id: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.eos_ids = eos_ids
        self.end_id = min(eos_ids) if end_id is None and len(eos_ids) == 1 else end_id
        self.pad_id = pad_id if pad_id is not None else min(eos_ids, default=0)
        # Decoding leaves out only a padding token of the model: the substitute can be id 0, an ordinary token.
        self._silent_ids = eos_ids if pad_id is None else eos_ids | {pad_id}
        self._pieces: dict[int, str] = {}
        # A cache per instance: one on the class would keep every tokenizer of the process alive.
        self._encode_remembered = lru_cache(maxsize=REMEMBERED_TEXTS)(self._encode)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        control = control_tokens(tokenizer)
        self.control_ids = frozenset(control) | self._silent_ids
        self._marks = frozenset() if template is None else find_textual_marks(template.source, control.values())

    @classmethod
    def from_folder(cls, path: str | Path) -> "ModelTokenizer":
        """Read ``tokenizer.json`` and, if present, the configuration files beside it.

        End-of-sequence ids are those of ``tokenizer_config.json``, ``generation_config.json`` and ``config.json``
        together. ``searcher.json`` may fix the template's arguments (``chat_template_kwargs``) and date
        (``template_date``).

        Raises:
            ConfigurationError: the folder has no readable ``tokenizer.json``, or a configuration is broken.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigurationError(f"{folder} has no tokenizer.json; a model folder must hold one")
        if is_lfs_pointer(file):
            raise ConfigurationError(f"{file} {IS_POINTER} there")
        try:
            tokenizer = FastTokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise ConfigurationError(f"{file} is not a tokenizer: {error}") from error
        # Both settings can be stored in tokenizer.json, and would cut or pad prompts silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = read_json(folder / "tokenizer_config.json")
        names = named_tokens(config)
        # The configurations of a model often disagree about the end of sequence: one names the end of a turn, another
        # the end of a text. Any of them ends a generation.
        end_ids = _ids_of(tokenizer, names.get("eos_token"))
        eos_ids = end_ids | _eos_ids(folder)
        pad_ids = _ids_of(tokenizer, names.get("pad_token"))
        source = find_chat_template(folder, config)
        template = None if source is None else ChatTemplate(source, names, *_template_settings(folder))
        return cls(tokenizer, eos_ids, min(pad_ids, default=None), template, min(end_ids, default=None))

    @classmethod
    def of_searcher(cls, path: str | Path) -> "ModelTokenizer":
        """Read as ``from_folder`` does, for a model that will be prompted, and check all that needs no weights.

        Raises:
            ConfigurationError: as ``from_folder``; or the folder has no chat template (guessing one would be silently
                wrong), its template refuses or changes a user message or prints a date that changes every day; or the
                folder is not a complete model, its tokenizer is larger than its embeddings, or its context is smaller
                than the limits of its ``searcher.json``.
        """
        folder = Path(path)
        if (folder / "config.json").is_file() or (folder / ADAPTER_FILE).is_file():
            check_model_files(folder)
        tokenizer = cls.from_folder(folder)
        check_vocabulary(folder, tokenizer.vocab_size)
        if (folder / PROFILE_FILE).is_file():
            limits = read_json(folder / PROFILE_FILE).get("limits")
            needed = limits.get("max_context_tokens") if isinstance(limits, dict) else None
            check_context(folder, needed if isinstance(needed, int) else Limits().max_context_tokens)
        template = tokenizer.required_template(path)
        rendered = template.render([{"role": "user", "content": GuardedText.from_outside(_PROBE)}])
        if _PROBE not in rendered:
            raise ConfigurationError(
                f"the chat template in {path} does not print the text of a user message unchanged; it may expect a "
                "list of parts (text, image), or be one for another task: add one for plain text as chat_template.jinja"
            )
        refuse_changing_date(template, path)
        return tokenizer

    def required_template(self, where: str | Path = "the model folder") -> ChatTemplate:
        """Return the chat template.

        Raises:
            ConfigurationError: the folder has none.
        """
        if self._template is None:
            raise ConfigurationError(
                f"{where} has no chat template; take an instruction-tuned model; for one that reads plain text, "
                "'searchrl profile' adds chat_template.jinja with {{ messages[-1]['content'] }}"
            )
        return self._template

    def first_ids(self) -> list[int]:
        """Return the ids that the tokenizer puts before every text, such as the start of a sequence."""
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        ids = self._tokenizer.encode("a", add_special_tokens=True).ids
        return ids[: len(ids) - len(plain)] if ids[len(ids) - len(plain) :] == plain else []

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` without any added special tokens; tags that are single tokens become one id.

        Control tokens spelled in the untrusted ranges of a ``GuardedText`` are encoded as ordinary text.
        """
        text = break_marks(text, self._marks)
        # A new list each time, because the cached value must not change under its other readers.
        return list(self._encode_remembered(str(text), untrusted_spans(text)))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; end-of-sequence and padding tokens are left out, other special tokens kept."""
        # Labeling decodes every sampled token on its own, so single ids are cached; at most one entry per id.
        if len(ids) == 1:
            if ids[0] not in self._pieces:
                self._pieces[ids[0]] = self._decode(ids)
            return self._pieces[ids[0]]
        return self._decode(ids)

    def _encode(self, text: str, untrusted: tuple[Span, ...]) -> tuple[int, ...]:
        return tuple(encode_guarded(self._tokenizer, GuardedText(text, untrusted), self.control_ids))

    def _decode(self, ids: Sequence[int]) -> str:
        spoken = [token_id for token_id in ids if token_id not in self._silent_ids]
        return self._tokenizer.decode(spoken, skip_special_tokens=False)

    def render_prompt(self, text: str) -> list[int]:
        """Return the ids of one user message in the chat template, up to the start of the assistant's turn.

        Raises:
            ConfigurationError: the folder has no chat template.
        """
        return self.render_chat([{"role": "user", "content": text}])

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation up to the start of the assistant's turn; errors as in ``render_prompt``."""
        return self.encode(self.render_chat_text(messages))

    def render_chat_text(self, messages: Sequence[Mapping[str, str]]) -> GuardedText:
        """Return the text that ``render_chat`` encodes."""
        return self.required_template().render(messages)


def refuse_changing_date(template: ChatTemplate, path: str | Path) -> None:
    """Raises:
    ConfigurationError: the template has printed today's date.
    """
    if template.printed_date:
        raise ConfigurationError(
            f"the chat template in {path} prints today's date, so prompts would change at midnight; fix it in "
            f'{PROFILE_FILE}, e.g. "template_date": "{date.today()}"'
        )


def _template_settings(folder: Path) -> tuple[dict[str, object], date | None]:
    """Return the template's arguments and date from ``searcher.json``."""
    profile = read_json(folder / PROFILE_FILE)
    arguments, day = profile.get("chat_template_kwargs") or {}, profile.get("template_date")
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{PROFILE_FILE}: chat_template_kwargs must be an object, found {arguments!r}")
    if reserved := sorted(RESERVED_ARGUMENTS & set(arguments)):
        raise ConfigurationError(f"{PROFILE_FILE}: chat_template_kwargs cannot set {reserved[0]}")
    try:
        return arguments, None if day is None else date.fromisoformat(str(day))
    except ValueError as error:
        raise ConfigurationError(f"{PROFILE_FILE}: template_date must be YYYY-MM-DD, found {day!r}") from error


def named_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Return the named special tokens, which a configuration gives as text or as an object with ``content``."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _ids_of(tokenizer: FastTokenizer, token: str | None) -> frozenset[int]:
    known = None if token is None else tokenizer.token_to_id(token)
    return frozenset() if known is None else frozenset({known})


def _eos_ids(folder: Path) -> frozenset[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found.update(each for each in values if isinstance(each, int))
    return frozenset(found)
