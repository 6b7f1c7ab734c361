"""The tables of the generator's README are what the code generates."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from searchrl.platform.settings import ServiceSettings
from services.generator.engines.settings import ChatEngineSettings
from services.generator.metrics import GeneratorMetrics
from services.generator.settings import GeneratorSettings

README = (Path(__file__).parents[3] / "services" / "generator" / "README.md").read_text()


def settings_rows(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The rows of the settings table, nested settings by their dotted names."""
    for name, field in model.model_fields.items():
        if not above and name in ServiceSettings.model_fields:
            continue
        annotation = field.annotation
        if get_origin(annotation) in (Union, UnionType):
            (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
        path = f"{above}{name}"
        is_second_engine = annotation is ChatEngineSettings and bool(above)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not is_second_engine:
            yield from settings_rows(annotation, f"{path}.")
            continue
        default = "required" if field.default is PydanticUndefined else f"`{field.default}`"
        if field.default in (None, "") or annotation is SecretStr:
            default = ""
        yield f"| `{path}` | {default} | {field.description} |"


def settings_table() -> str:
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *settings_rows(GeneratorSettings)])


def metrics_table() -> str:
    registry = CollectorRegistry()
    GeneratorMetrics(registry)
    rows = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | {family.documentation} |"
        for family in registry.collect()
    ]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *sorted(rows)])


def test_the_settings_table_is_the_class() -> None:
    assert settings_table() in README


def test_the_metrics_table_is_what_is_exported() -> None:
    assert metrics_table() in README
