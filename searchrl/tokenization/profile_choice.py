"""Chooses how a model is run as a searcher: the settings of ``searcher.json``, each with its reason."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from tokenizers import Tokenizer

from searchrl.agent.profile import PROFILE_FILE, Mode, SearcherProfile, require_at_least
from searchrl.agent.types import Limits
from searchrl.errors import ConfigurationError
from searchrl.tokenization.chat_template import ChatTemplate, find_chat_template
from searchrl.tokenization.model_files import check_model_files, context_window, read_json
from searchrl.tokenization.model_tokenizer import ModelTokenizer, named_tokens

CHAT_TEMPLATE_FILE = "chat_template.jinja"
# Thoughts of Qwen3 take some hundred to a few thousand tokens; 500, enough for a query, would end most turns inside
# one.
THINKING_TURN_TOKENS = 2000
_PROBE = "Who wrote it?"
_THINKING = "enable_thinking"
"""The variable by which chat templates of Qwen3 and others switch thinking on and off."""

STARTING_PROFILES: Mapping[tuple[str, str], SearcherProfile] = {
    ("s3", "strict"): SearcherProfile("s3"),
    ("search_r1", "strict"): SearcherProfile("search_r1", initial_top_k=0),
    # train_s3.sh and evaluate-8-3-3.sh: 8 documents per search and 3 turns, to which s3's loop adds one search
    ("s3", "legacy"): SearcherProfile(
        "s3", "legacy", limits=Limits(max_searches=4, top_k=8), temperature=0.6, top_p=0.95, initial_top_k=3
    ),
    # v0.2/train_ppo.sh and train_grpo.sh of Search-R1
    ("search_r1", "legacy"): SearcherProfile(
        "search_r1",
        "legacy",
        limits=Limits(max_searches=4, top_k=3, max_observation_tokens=500, max_context_tokens=4096),
        initial_top_k=0,
    ),
}
"""The settings before the model is looked at, by protocol and mode: this project's, and those of published runs."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user has decided; None, or a limit that is not named, leaves a choice to the model's files.

    Attributes:
        template: text of the prompt with ``{question}`` and ``{documents}``.
        thinking: whether a model that can think before it writes does so.
        day: the date for a chat template that prints today's.
        limits: values of ``Limits`` by name.
    """

    template: str | None = None
    thinking: bool | None = None
    day: date | None = None
    temperature: float | None = None
    top_p: float | None = None
    initial_top_k: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """One setting, its value as shown to the user, and why it was chosen."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProfileChoice:
    """A profile with the reasons for it; ``chat_template`` is a file that the folder needs as well, if any."""

    profile: SearcherProfile
    chat_template: str | None
    decisions: tuple[Decision, ...]


def choose_profile(folder: Path, protocol: str, mode: Mode, wishes: Wishes) -> ProfileChoice:
    """Choose the profile of the model in a folder, and check it with the model's tokenizer and chat template.

    Raises:
        ConfigurationError: the folder is no complete model, a wish does not fit the model, or the model cannot be
            prompted; see ``ModelTokenizer.of_searcher``.
    """
    check_model_files(folder)
    replace(SearcherProfile(), protocol=protocol, mode=mode).build_protocol()  # for its check of both names
    profile, decisions = _apply_wishes(STARTING_PROFILES[protocol, mode], wishes)
    config = read_json(folder / "tokenizer_config.json")
    source, added = find_chat_template(folder, config), None
    if source is None:
        source, reason = _plain_text_template(folder, config, mode)
        added = source
        decisions.append(Decision(CHAT_TEMPLATE_FILE, source, reason))
    chat = _Chat(source, named_tokens(config))
    profile, thinks = _choose_thinking(chat, profile, wishes.thinking, decisions)
    profile = _choose_date(chat, profile, wishes.day, decisions)
    profile = _choose_limits(folder, profile, wishes.limits, thinks, decisions)
    tokens = _check_with_model(folder, profile, added)
    decisions.append(Decision("prompt", f"{tokens} tokens", "without documents; the model's tokenizer accepts it"))
    return ProfileChoice(profile, added, tuple(decisions))


@dataclass(frozen=True, slots=True)
class _Chat:
    """A model's chat template, as source and special tokens."""

    source: str
    tokens: Mapping[str, str]

    def render(self, arguments: Mapping[str, object]) -> tuple[str, bool]:
        """Return the prompt of a short message, and whether it holds today's date."""
        template = ChatTemplate(self.source, self.tokens, arguments)
        return template.render([{"role": "user", "content": _PROBE}]), template.printed_date


def _apply_wishes(profile: SearcherProfile, wishes: Wishes) -> tuple[SearcherProfile, list[Decision]]:
    """Replace the settings that the user has decided, and explain the others."""
    is_legacy = profile.mode == "legacy"
    rules = "the rules of published checkpoints" if is_legacy else "this project's rules"
    origin = "as published" if is_legacy else "this project's default"
    decisions = [Decision("protocol, mode", f"{profile.protocol}, {profile.mode}", rules)]
    for name in ("temperature", "top_p", "initial_top_k"):
        given = getattr(wishes, name)
        if given is not None:
            require_at_least(name, given, 0)
            profile = replace(profile, **{name: given})
        value = getattr(profile, name)
        reason = origin if given is None else "given"
        if name == "top_p" and value < 1:
            reason += "; serves a checkpoint, and training needs 1"
        decisions.append(Decision(name, f"{value:g}", reason))
    if wishes.template is not None:
        _check_template(wishes.template, profile.initial_top_k)
        profile = replace(profile, template=wishes.template)
        decisions.append(Decision("template", f"{len(wishes.template)} characters", "given, kept byte for byte"))
    else:
        reason = "a published checkpoint needs the prompt of its training" if is_legacy else "the protocol's own"
        decisions.append(Decision("template", "this project's", reason))
    return profile, decisions


def _check_template(template: str, initial_top_k: int) -> None:
    """Refuse a prompt that would not show what the searcher must see.

    Raises:
        ConfigurationError: a placeholder is missing.
    """
    if "{question}" not in template:
        raise ConfigurationError("the template has no {question}, so every prompt would be the same")
    if initial_top_k and "{documents}" not in template:
        raise ConfigurationError(
            f"the template has no {{documents}}, and initial_top_k is {initial_top_k}: the searcher would not see the "
            "documents of the first search; add it, or set initial_top_k to 0"
        )


def _plain_text_template(folder: Path, config: Mapping[str, object], mode: Mode) -> tuple[str, str]:
    """Return a chat template for a base model, which prints the message alone, and the reason for its form."""
    message = "{{ messages[-1]['content'] }}"
    if mode == "legacy":
        # verl, with which both projects train, tokenizes such a prompt with add_special_tokens=False.
        return message, "a base model without a chat template; published runs prompt it with the text alone"
    bos = named_tokens(config).get("bos_token")
    if bos is not None and _starts_with(folder, bos):
        return "{{ bos_token }}" + message, f"a base model without a chat template; its tokenizer begins with {bos}"
    return message, "a base model without a chat template; its tokenizer adds no first token"


def _starts_with(folder: Path, bos: str) -> bool:
    """Return whether the tokenizer puts this token before a text by itself."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return False  # reported by the check with the model
    tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    return tokenizer.encode("a", add_special_tokens=True).ids[:1] == [tokenizer.token_to_id(bos)]


def _choose_thinking(
    chat: _Chat, profile: SearcherProfile, wish: bool | None, decisions: list[Decision]
) -> tuple[SearcherProfile, bool]:
    """Set the template's switch, if it has one; also return whether the model thinks before each turn.

    Raises:
        ConfigurationError: the template has no switch, and the wish is not what it does anyway.
    """
    texts = {value: chat.render({_THINKING: value})[0] for value in (True, False)}
    if texts[True] != texts[False]:
        thinks = bool(wish)
        reason = "given" if wish is not None else "thoughts would take the tokens of a turn; --thinking on allows them"
        decisions.append(Decision(_THINKING, str(thinks).lower(), reason))
        return replace(profile, chat_template_kwargs={_THINKING: thinks}), thinks
    always = texts[True].rstrip().endswith("<think>")
    if wish is not None and wish != always:
        does = "begins every turn with a thought" if always else "has no switch for thinking"
        raise ConfigurationError(f"the model's chat template {does}; leave --thinking out")
    if always:
        decisions.append(Decision("thinking", "always", "the chat template begins every turn with a thought"))
    return profile, always


def _choose_date(
    chat: _Chat, profile: SearcherProfile, wish: date | None, decisions: list[Decision]
) -> SearcherProfile:
    """Fix the date that the template prints, if it prints today's.

    Raises:
        ConfigurationError: a date is given, and the template prints none.
    """
    if not chat.render(profile.chat_template_kwargs)[1]:
        if wish is not None:
            raise ConfigurationError("the model's chat template does not print today's date; leave --date out")
        return profile
    day = wish or date.today()
    reason = "given" if wish else "the chat template prints today's date; fixed, so that prompts do not change"
    decisions.append(Decision("template_date", day.isoformat(), reason))
    return replace(profile, template_date=day.isoformat())


def _choose_limits(
    folder: Path, profile: SearcherProfile, given: Mapping[str, int], thinks: bool, decisions: list[Decision]
) -> SearcherProfile:
    """Set the limits: those given, room for thoughts, and not more tokens than the model's context has."""
    limits, reasons = replace(profile.limits, **given), dict.fromkeys(given, "given")
    if thinks and "max_turn_tokens" not in given and limits.max_turn_tokens < THINKING_TURN_TOKENS:
        more = THINKING_TURN_TOKENS - limits.max_turn_tokens
        limits = replace(limits, max_turn_tokens=THINKING_TURN_TOKENS)
        reasons["max_turn_tokens"] = "room for a thought"
        if "max_context_tokens" not in given:
            # One more turn than searches: with 3 searches, 4 x 1500 more tokens.
            needed = limits.max_context_tokens + (limits.max_searches + 1) * more
            limits = replace(limits, max_context_tokens=needed)
            reasons["max_context_tokens"] = "room for the thoughts of all turns"
    window = context_window(folder)
    if window is not None and window < limits.max_context_tokens and "max_context_tokens" not in given:
        limits = replace(limits, max_context_tokens=window)
        reasons["max_context_tokens"] = "all of the model's context"
    origin = "as published" if profile.mode == "legacy" else "this project's default"
    for name in ("max_searches", "top_k", "max_turn_tokens", "max_observation_tokens", "max_context_tokens"):
        decisions.append(Decision(name, str(getattr(limits, name)), reasons.get(name, origin)))
    return replace(profile, limits=limits)


def _check_with_model(folder: Path, profile: SearcherProfile, chat_template: str | None) -> int:
    """Load the tokenizer as training and serving do, as if the files were written; return the prompt's tokens.

    Raises:
        ConfigurationError: the model cannot be prompted so, or a prompt leaves no room for a turn.
    """
    # The checks read a folder, and the model's own must not change before they pass.
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for path in folder.iterdir():
            if path.name != PROFILE_FILE:
                (staged / path.name).symlink_to(path.resolve())
        (staged / PROFILE_FILE).write_text(profile.to_json(), encoding="utf-8")
        if chat_template is not None:
            (staged / CHAT_TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
        try:
            SearcherProfile.from_json(profile.to_json())
            tokenizer = ModelTokenizer.of_searcher(staged)
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace(str(staged), str(folder))) from error
    prompt = len(tokenizer.render_prompt(profile.build_protocol().render_prompt(_PROBE, [])))
    limits = profile.limits
    needed = prompt + limits.max_turn_tokens + (limits.max_observation_tokens if profile.initial_top_k else 0)
    if needed > limits.max_context_tokens:
        raise ConfigurationError(
            f"a prompt with documents and one turn take {needed} tokens, but max_context_tokens is "
            f"{limits.max_context_tokens}; allow fewer tokens per turn and observation, or take a model with a larger "
            "context"
        )
    return prompt
