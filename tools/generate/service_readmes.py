"""Generates the tables of settings and of metrics in the services' READMEs, and of the settings that all share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from searchrl.platform.settings import ServiceSettings
from services.evaluator.settings import EvaluatorSettings
from services.generator.settings import GeneratorSettings
from services.policy_server.settings import PolicyServerSettings
from services.retriever.settings import RetrieverSettings
from services.trainer.settings import RunConfig
from services.trainer.sft.settings import SftConfig
from tools.generate.marked_section import replace_section
from tools.generate.service_metrics import metrics_table

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Readme:
    """What the tables of one service's README show."""

    settings: type[BaseModel]
    owner: str  # of the metrics, as in ``service_metrics.BUILDERS``
    shown_once: tuple[str, ...] = ()  # sections with the settings of another one; the table has a single row for each


READMES = {
    "retriever": Readme(RetrieverSettings, "retriever"),
    "generator": Readme(GeneratorSettings, "generator", shown_once=("judge.engine",)),
    "trainer": Readme(RunConfig, "trainer", shown_once=("algorithm.value_optim",)),
    "evaluator": Readme(EvaluatorSettings, "evaluator"),
    "policy_server": Readme(PolicyServerSettings, "policy-server"),
}
SFT_SHOWN_ONCE = ("training.optim", "learner", "logging.wandb", "logging.mlflow")
SHARED_SETTINGS = "docs/operations/local.md"
"""The page with the settings of every service."""


def files() -> dict[str, str]:
    """Return the text of each page by its path in the repository."""
    texts: dict[str, str] = {}
    for service, readme in READMES.items():
        path = f"services/{service}/README.md"
        settings = settings_table(readme.settings, readme.shown_once)
        text = replace_section((ROOT / path).read_text(), "settings", settings)
        texts[path] = replace_section(text, "metrics", metrics_table(readme.owner))
    trainer = "services/trainer/README.md"
    texts[trainer] = replace_section(texts[trainer], "sft", settings_table(SftConfig, SFT_SHOWN_ONCE))
    shared = settings_table(ServiceSettings)
    texts[SHARED_SETTINGS] = replace_section((ROOT / SHARED_SETTINGS).read_text(), "settings", shared)
    return texts


def settings_table(model: type[BaseModel], shown_once: tuple[str, ...] = ()) -> str:
    """Return one row for each setting; a service's table leaves out those that every service has."""
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *_rows(model, shown_once)])


def _rows(
    model: type[BaseModel], shown_once: tuple[str, ...], above: str = "", defaults: BaseModel | None = None
) -> Iterator[str]:
    """Yield the rows of a section, nested ones by their dotted names.

    Args:
        model: the section's class.
        shown_once: paths of sections that get a single row.
        above: the section's path with a final dot; empty for the settings themselves.
        defaults: the section's default, whose values may differ from those of its class.
    """
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        if model is not ServiceSettings and issubclass(model, ServiceSettings) and name in ServiceSettings.model_fields:
            continue
        default = field.default if defaults is None else getattr(defaults, name)
        if field.discriminator is not None:
            yield from _union_rows(get_args(field.annotation), shown_once, f"{path}.")
            continue
        annotation = _without_none(field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if path not in shown_once:
                yield from _rows(
                    annotation, shown_once, f"{path}.", default if isinstance(default, BaseModel) else None
                )
                continue
            default = None
        yield f"| `{path}` | {_cell_of_default(default, annotation)} | {_meaning(field)} |"


def _union_rows(members: tuple[type[BaseModel], ...], shown_once: tuple[str, ...], above: str) -> Iterator[str]:
    """Yield the rows of a union keyed on ``kind``, each once; one that not all kinds have names those that have it."""
    by_kind = {str(member.model_fields["kind"].default): list(_rows(member, shown_once, above)) for member in members}
    kinds = list(by_kind)
    yield f"| `{above}kind` | `{kinds[0]}` | {', '.join(kinds[:-1])} or {kinds[-1]}. |"
    for row in dict.fromkeys(row for rows in by_kind.values() for row in rows):
        having = [kind for kind, rows in by_kind.items() if row in rows]
        if f"`{above}kind`" not in row:
            path, default, meaning = row.removesuffix(" |").split(" | ", 2)
            of_kinds = "" if having == kinds else f"{', '.join(having)}: "
            yield f"{path} | {default} | {of_kinds}{meaning} |"


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
    return annotation


def _cell_of_default(default: Any, annotation: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default in (None, "") or annotation is SecretStr:
        return ""
    return f"`{default}`"


def _meaning(field: FieldInfo) -> str:
    # A bar ends a cell of a Markdown table.
    return str(field.description).replace("|", "\\|")
