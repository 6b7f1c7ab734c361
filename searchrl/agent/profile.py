"""Defines how a searcher is run: the settings that belong to its weights and are stored beside them."""

import json
from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from datetime import date
from typing import Any, Literal, get_args, get_origin

from searchrl.agent.protocols import PROTOCOLS
from searchrl.agent.protocols.base import SearchProtocol
from searchrl.agent.types import Limits, Sampling
from searchrl.errors import ConfigurationError, unknown_name
from searchrl.input_files import parse_json

PROFILE_FILE = "searcher.json"

Mode = Literal["strict", "legacy"]


@dataclass(frozen=True, slots=True)
class SearcherProfile:
    """Prompt, sampling and limits of one searcher (``searcher.json``), read alike by training and serving.

    Attributes:
        protocol: name of the search protocol, see ``searchrl.agent.protocols.PROTOCOLS``.
        mode: "strict" for this project's rules, "legacy" for those of published checkpoints.
        template: prompt with ``{question}`` and ``{documents}``; None for the protocol's own.
        limits: budgets of one rollout.
        temperature: sampling temperature of the training; 0 is greedy.
        top_p: nucleus sampling threshold of the training; 1 disables it.
        initial_top_k: passages found with the question itself and shown in the prompt; 0 for none.
        chat_template_kwargs: variables of the chat template, e.g. ``{"enable_thinking": false}``.
        template_date: the date (YYYY-MM-DD) for chat templates that print today's date; without it the prompts of such
            a model change every day.
    """

    protocol: str = "s3"
    mode: Mode = "strict"
    template: str | None = None
    limits: Limits = field(default_factory=Limits)
    temperature: float = 1.0
    top_p: float = 1.0
    initial_top_k: int = 3
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    template_date: str | None = None

    @property
    def first_top_k(self) -> int:
        """Number of passages that the searcher is shown first: ``initial_top_k``, or that of one search if it is 0."""
        return self.initial_top_k or self.limits.top_k

    def build_protocol(self) -> SearchProtocol:
        """Return the protocol object.

        Raises:
            ConfigurationError: there is no protocol or mode of that name.
        """
        require_known("search protocol", self.protocol, PROTOCOLS)
        modes = PROTOCOLS[self.protocol]
        require_known("mode", self.mode, modes)
        _require_date(self.template_date)
        return modes[self.mode](self.template, self.limits)

    def sampling(self, seed: int | None = None, temperature: float | None = None) -> Sampling:
        """Return the sampling parameters of this searcher; ``temperature`` overrides the profile's."""
        return Sampling(
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p,
            max_tokens=self.limits.max_turn_tokens,
            seed=seed,
        )

    def to_json(self) -> str:
        """Return the text of ``searcher.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SearcherProfile":
        """Read ``searcher.json``; absent fields have their defaults.

        Raises:
            ConfigurationError: not a JSON object, an unknown field, or an unknown protocol or mode.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ConfigurationError(f"{PROFILE_FILE} is not JSON: {error}") from error
        values = check_fields(values, cls, PROFILE_FILE)
        limits = Limits(**check_fields(values.pop("limits", {}), Limits, f"limits in {PROFILE_FILE}"))
        # 0 is allowed for these three alone: any other budget of 0 leaves no token to sample or no passage to show.
        for name, value in asdict(limits).items():
            require_at_least(name, value, 0 if name in {"max_searches", "max_selected", "seconds"} else 1)
        profile = cls(**values, limits=limits)
        # Called for its checks alone: a wrong name or date fails when the file is read, not in the first rollout.
        profile.build_protocol()
        return profile


def _require_date(text: str | None) -> None:
    try:
        if text is not None:
            date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{PROFILE_FILE}: template_date must be YYYY-MM-DD, found {text!r}") from error


def check_fields(values: object, kind: type[Any], where: str) -> dict[str, Any]:
    """Return the values by field name.

    Raises:
        ConfigurationError: not an object, an unknown field, or a value of another type than the field's.
    """
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where} must be a JSON object, found {type(values).__name__}")
    known = {each.name: each for each in fields(kind)}
    for name, value in values.items():
        require_known(f"field of {where}", name, known)
        if not _fits(value, known[name]):
            raise ConfigurationError(f"{where}: {name} cannot be {value!r}")
    return dict(values)


def require_known(what: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not among ``names``, and point to the nearest one.

    Raises:
        ConfigurationError: the name is unknown.
    """
    choices = list(names)
    if name not in choices:
        raise ConfigurationError(unknown_name(what, name, choices))


def require_at_least(name: str, value: float | None, least: float) -> None:
    """Refuse a number below ``least``.

    Raises:
        ConfigurationError: the number is below ``least``.
    """
    if value is not None and value < least:
        raise ConfigurationError(f"{name} must be at least {least}, got {value}")


def _fits(value: object, declared: Field[Any]) -> bool:
    # The types of these dataclasses are objects, not strings, because their modules do not postpone annotations. The
    # values of a Literal are checked by build_protocol, whose message lists the known ones.
    if get_origin(declared.type) is Literal:
        return isinstance(value, str)
    if get_origin(declared.type) is dict:
        return isinstance(value, dict)
    kinds = get_args(declared.type) or (declared.type,)
    # bool is a subclass of int, so it is checked first: true is not a number of searches.
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, dict):
        return any(is_dataclass(kind) for kind in kinds)
    # JSON does not distinguish 1 from 1.0, so an integer is accepted in place of a float.
    return type(value) in kinds or (isinstance(value, int) and float in kinds)
