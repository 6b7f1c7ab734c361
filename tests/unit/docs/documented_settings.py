"""Finds the setting that a name such as ``retriever.cache.redis_url`` of the documentation stands for."""

from collections.abc import Iterator
from functools import cache
from typing import Any, cast, get_args

from pydantic import BaseModel, TypeAdapter

from services.evaluator.settings import EvaluatorSettings
from services.generator.settings import GeneratorSettings
from services.policy_server.settings import PolicyServerSettings
from services.retriever.settings import RetrieverSettings
from services.trainer.command_line import TrainerSettings
from services.trainer.settings import RunConfig
from services.trainer.sft.settings import SftConfig

# A training run has two classes: the process has ports and keys, the run has everything else.
CLASSES: dict[str, tuple[type[BaseModel], ...]] = {
    "retriever": (RetrieverSettings,),
    "generator": (GeneratorSettings,),
    "evaluator": (EvaluatorSettings,),
    "trainer": (RunConfig, TrainerSettings),
    "policy_server": (PolicyServerSettings,),
    "trainer.sft": (SftConfig,),
}
DEEPEST = 5  # parts of a name; the classes do not nest deeper, except for an engine of the judge


@cache
def settings_of(service: str) -> dict[str, list[TypeAdapter[Any]]]:
    """The types of each setting by its dotted name; a setting of several kinds of algorithms has several."""
    found: dict[str, list[TypeAdapter[Any]]] = {}
    for model in CLASSES[service]:
        for name, kind in _fields(model):
            found.setdefault(name, []).append(kind)
    return found


def setting_names() -> Iterator[str]:
    """Dotted names of all settings, with and without the service's name as prefix."""
    for service in CLASSES:
        for name in settings_of(service):
            yield from (name, f"{service}.{name}")


def accepts(service: str, name: str, value: Any) -> bool:
    """Whether the service has this setting, and the value is one of its type."""
    return any(_is_valid(kind, value) for kind in settings_of(service).get(name, []))


def _is_valid(kind: TypeAdapter[Any], value: Any) -> bool:
    try:
        kind.validate_python(value)
    except ValueError:
        return False
    return True


def _fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, TypeAdapter[Any]]]:
    for name, field in model.model_fields.items():
        yield f"{above}{name}", TypeAdapter[Any](cast(Any, field.annotation))
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel) and above.count(".") < DEEPEST - 1:
                yield from _fields(part, f"{above}{name}.")
