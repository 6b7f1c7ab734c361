"""The tables of the trainer's README are what the code generates."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from searchrl.contracts.v1 import trainer_pb2
from services.trainer.http_routes import MIRRORS
from services.trainer.metrics import TrainerMetrics
from services.trainer.run_config import RunConfig, preset_names

README = (Path(__file__).parents[3] / "services" / "trainer" / "README.md").read_text()
SHOWN_ONCE = "algorithm.value_optim"  # the settings of update.optim again


def settings_rows(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The rows of the settings table, nested settings by their dotted names."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if get_origin(annotation) in (Union, UnionType) and field.discriminator is None:
            (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
        path = f"{above}{name}"
        if path == SHOWN_ONCE:
            continue
        if field.discriminator is not None:
            yield from rows_of_union(get_args(field.annotation), f"{path}.")
            continue
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from settings_rows(annotation, f"{path}.")
            continue
        default = "required" if field.default is PydanticUndefined else f"`{field.default}`"
        if field.default in (None, ""):
            default = ""
        meaning = str(field.description).replace("|", "\\|")
        yield f"| `{path}` | {default} | {meaning} |"


def rows_of_union(members: tuple[type[BaseModel], ...], above: str) -> Iterator[str]:
    """The rows of all members, each once; one that not all members have names those that have it."""
    by_kind = {str(member.model_fields["kind"].default): list(settings_rows(member, above)) for member in members}
    kinds = list(by_kind)
    yield f"| `{above}kind` | `{kinds[0]}` | {', '.join(kinds[:-1])} or {kinds[-1]}. |"
    for row in dict.fromkeys(row for rows in by_kind.values() for row in rows):
        having = [kind for kind, rows in by_kind.items() if row in rows]
        if f"`{above}kind`" not in row:
            path, default, meaning = row.removesuffix(" |").split(" | ", 2)
            whose = "" if having == kinds else f"{', '.join(having)}: "
            yield f"{path} | {default} | {whose}{meaning} |"


def settings_table() -> str:
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *settings_rows(RunConfig)])


def metrics_table() -> str:
    registry = CollectorRegistry()
    TrainerMetrics(registry)
    rows = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | {family.documentation} |"
        for family in registry.collect()
    ]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *sorted(rows)])


def test_the_settings_table_is_the_class() -> None:
    assert settings_table() in README


def test_the_metrics_table_is_what_is_exported() -> None:
    assert metrics_table() in README


def test_every_call_is_listed_with_its_route() -> None:
    listed = set(re.findall(r"^\| `(\w+) (/\S+)` \| `(\w+)` \|", README, re.MULTILINE))
    assert listed == {(mirror.verb, mirror.path, mirror.method) for mirror in MIRRORS}
    calls = trainer_pb2.DESCRIPTOR.services_by_name["Trainer"].methods_by_name
    assert {mirror.method for mirror in MIRRORS} == set(calls)


def test_every_preset_is_named() -> None:
    assert all(f"`{name}`" in README for name in preset_names())
