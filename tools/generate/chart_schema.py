"""Generates the chart's values.schema.json from ``schema.yaml`` and the settings of the services."""

import json
from pathlib import Path
from typing import Any

import yaml

from services.evaluator.settings import EvaluatorSettings
from services.generator.settings import GeneratorSettings
from services.retriever.settings import RetrieverSettings

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "searchrl"

Schema = dict[str, Any]
SETTINGS = {"retriever": RetrieverSettings, "generator": GeneratorSettings, "evaluator": EvaluatorSettings}
# Settings that the chart itself writes, and secrets, which must never be in values.
NOT_FOR_USERS = {
    "listen",
    "auth_keys_file",
    "ready_file",
    "traces_endpoint",
    "index_dir",
    "builds",
    "cache.redis_url",
    "engine.kind",
    "engine.base_url",
    "engine.model",
    "engine.key",
    "engine.structured_outputs",
    "engine.vllm",
    "judge.engine",
    "searcher.model_dir",
    "searcher.base_url",
    "searcher.model",
    "searcher.key",
    "retriever.target",
    "retriever.key",
    "generator.target",
    "generator.key",
    "store",
    "questions_dir",
}


# In values nothing is required, because the services have defaults of their own; references are resolved in place.
LEFT_OUT = {"title", "default", "format", "writeOnly", "$defs", "required"}


def files() -> dict[str, str]:
    """Return the text of the schema by its path in the repository."""
    return {"deploy/helm/searchrl/values.schema.json": build()}


def build() -> str:
    """Return the text of values.schema.json."""
    source = yaml.safe_load((CHART / "schema.yaml").read_text())
    workload, engine = source.pop("workload"), source.pop("engine")
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **_expand(source, workload, engine)}
    schema["$defs"] |= {
        f"{name}Config": _closed(_settings_schema(settings.model_json_schema())) for name, settings in SETTINGS.items()
    }
    return json.dumps(schema, indent=1) + "\n"


def _expand(node: Any, workload: Schema, engine: Schema) -> Any:
    """Expand the short forms of schema.yaml, and close every object: unknown keys are errors."""
    if isinstance(node, list):
        return [_expand(item, workload, engine) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"config"} and node["config"] in SETTINGS:
        return {"$ref": f"#/$defs/{node['config']}Config"}
    if "workload" in node and "properties" not in node and set(node) == {"workload"}:
        own = dict(node["workload"])
        if own.pop("<engine>", None) is not None:
            own = {**engine, **own}
        node = {"properties": {**workload, **own}}
    return _close({key: _expand(value, workload, engine) for key, value in node.items()})


def _close(node: Schema) -> Schema:
    # node["properties"] is either the keyword with its mapping of names, or the schema of a setting that is itself
    # called "properties". Only a schema has a text under "type"; in a mapping of names, a setting called "type" has its
    # schema there.
    properties = node.get("properties")
    if isinstance(properties, dict) and "type" not in properties:
        return {"type": "object", "additionalProperties": False, **node}
    if isinstance(properties, dict) and isinstance(properties.get("type"), dict):
        return {"type": "object", "additionalProperties": False, **node}
    return node


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if isinstance(node, dict):
        return _close({key: _closed(value) for key, value in node.items()})
    return node


def _settings_schema(root: Schema) -> Schema:
    """Return a service's settings without those that the chart decides, references resolved, nothing required."""

    def resolve(node: Schema, path: str) -> Schema:
        if "$ref" in node:
            # A field's own text wins over that of its class.
            described = {key: value for key, value in node.items() if key == "description"}
            return {**resolve(root["$defs"][node["$ref"].rpartition("/")[2]], path), **described}
        kept = {k: v for k, v in node.items() if k not in LEFT_OUT}
        if "anyOf" in kept:
            kept["anyOf"] = [resolve(option, path) for option in kept["anyOf"]]
            objects = [option for option in kept["anyOf"] if "properties" in option]
            if objects:  # a mapping or nothing: in values it is a mapping
                return {**objects[0], "description": kept.get("description", "")}
        if "properties" in kept:
            names = {name: f"{path}.{name}".lstrip(".") for name in kept["properties"]}
            kept["properties"] = {
                name: resolve(child, names[name])
                for name, child in kept["properties"].items()
                if names[name] not in NOT_FOR_USERS
            }
        return kept

    return resolve(root, "")
