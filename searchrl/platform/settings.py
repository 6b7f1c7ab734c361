"""Reads a service's settings from defaults, a YAML file, environment variables and ``--set``; later sources win.

The sources are merged here, not by pydantic-settings, because that ignores environment variables with misspelled
names. Every unknown name is refused with the nearest known one.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from searchrl.errors import ConfigurationError, unknown_name
from searchrl.input_files import parse_json

# Kubernetes puts such variables into every pod for each Service of its namespace. A Service named "retriever" yields
# RETRIEVER_PORT, which has our prefix and is no setting of ours.
_SERVICE_LINK = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$")

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A group of settings, which is declared beside its component and handed over whole; unknown keys are errors."""

    # pydantic reserves names that start with "model_", which are names of settings here
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Listen(Section):
    """Where the two servers listen; port 0 lets the system choose."""

    host: str = Field(default="127.0.0.1", description="Address of both servers.")
    http_port: int = Field(default=8080, ge=0, le=65535, description="REST, health and metrics.")
    grpc_port: int = Field(default=9090, ge=0, le=65535, description="gRPC.")
    drain_seconds: float = Field(default=20.0, ge=0, description="Time that requests in flight get after SIGTERM.")
    request_seconds: float | None = Field(
        default=120.0, gt=0, description="Deadline of REST calls that name none; event streams have none. null: none."
    )
    max_connections: int = Field(default=4096, gt=0, description="Open HTTP connections; more are answered 503.")
    header_seconds: float = Field(default=20.0, gt=0, description="Time that an HTTP request's headers may take.")
    body_seconds: float = Field(default=60.0, gt=0, description="Time that an HTTP request's body may take.")
    tls_certificate: Path | None = Field(default=None, description="PEM file; with it both servers speak TLS only.")
    tls_private_key: Path | None = Field(default=None, description="PEM file of the certificate's key.")


class ServiceSettings(BaseSettings):
    """Base of each service's settings. Values are read once, at start."""

    # Frozen: the settings are shared by tasks and threads, and nothing reads them again after the start.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")

    listen: Listen = Field(default=Listen(), description="Addresses, ports and draining.")
    auth_keys_file: Path | None = Field(default=None, description="API keys; unset: no authentication.")
    log_format: Literal["json", "text"] = Field(default="json", description="One JSON object a line, or text.")
    ready_file: Path | None = Field(default=None, description="Written with the chosen ports once ready.")
    traces_endpoint: str | None = Field(
        default=None, description="OTLP collector for traces; unset: OTEL_EXPORTER_OTLP_ENDPOINT decides."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Accept explicit values only: ``from_environment`` merges the other sources and checks their names."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, argv: Sequence[str] | None = None) -> Self:
        """Merge all sources and validate.

        Args:
            argv: command line; None: that of the process.

        Raises:
            ConfigurationError: an unknown name (the message gives the nearest known one) or a bad value.
        """
        prefix = str(cls.model_config.get("env_prefix") or "")
        arguments = _parse_arguments(cls, argv)
        values: dict[str, Any] = {}
        config = arguments.config or os.environ.get(f"{prefix}CONFIG")
        if config:
            values = merge(values, read_yaml(Path(config)))
        values = merge(values, _from_variables(prefix, os.environ))
        for assignment in arguments.set:
            values = merge(values, parse_assignment(assignment))
        return validate(cls, values, environment_prefix=prefix)


def validate(model: type[Model], values: Mapping[str, Any], environment_prefix: str = "") -> Model:
    """Check names, then values.

    Raises:
        ConfigurationError: one sentence about the first problem.
    """
    # Names before values: pydantic would report an unknown name as "extra inputs are not permitted", without the
    # known name that was probably meant, and in an order of its own.
    for path, known in _unknown_keys(model, values):
        *above, last = path = tuple(map(str, path))  # YAML keys may be numbers or dates
        where = ".".join(above)
        what = f"setting under '{where}'" if where else "setting"
        if environment_prefix:
            what += f" ({environment_prefix}{'__'.join(path).upper()})"
        raise ConfigurationError(unknown_name(what, last, known))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(_path_of(model, first["loc"])) or model.__name__
        hint = f" (variable {environment_prefix}{place.replace('.', '__').upper()})" if environment_prefix else ""
        raise ConfigurationError(f"setting '{place}'{hint}: {first['msg']}") from error


def _path_of(model: type[BaseModel], location: Sequence[int | str]) -> Iterator[str]:
    """Yield the names of a setting's path; pydantic's location also has the key of a union keyed on a setting."""
    field = model.model_fields.get(str(location[0])) if location else None
    if field is None or not isinstance(field.discriminator, str) or len(location) < 2:
        yield from map(str, location)
        return
    yield str(location[0])
    (chosen,) = _models_of(field, {field.discriminator: location[1]})
    yield from _path_of(chosen, location[2:])


NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What reading YAML raises: its own errors; ValueError for invalid UTF-8 or an impossible date; too deep nesting."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigurationError: the file is missing, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings file {path}: {error.strerror}") from error
    except NO_YAML as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: expected a mapping of settings at the top")
    return content


def parse_assignment(assignment: str) -> dict[str, Any]:
    """Convert ``a.b=1`` to ``{"a": {"b": 1}}``; the value is read as YAML.

    Raises:
        ConfigurationError: no ``name=value``, or the value is not YAML.
    """
    name, equals, text = assignment.partition("=")
    if not equals or not name.strip():
        raise ConfigurationError(f"--set takes name=value, got '{assignment}'")
    try:
        return _nested(name.strip().split("."), yaml.safe_load(text))
    except NO_YAML as error:
        raise ConfigurationError(f"--set {name.strip()}: '{text}' is not a valid YAML value") from error


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; values of ``above`` take precedence."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _parse_arguments(model: type[BaseModel], argv: Sequence[str] | None) -> argparse.Namespace:
    fields = "\n".join(f"  {name:<16} {field.description or ''}" for name, field in model.model_fields.items())
    parser = argparse.ArgumentParser(
        description=model.__doc__, epilog=f"settings:\n{fields}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(unknown_name("flag", unknown[0], ["--config", "--set", "--help"]))
    return arguments


def _from_variables(prefix: str, environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if not prefix:
        return values
    for name, text in environment.items():
        if (
            not name.startswith(prefix)
            or name == f"{prefix}CONFIG"
            or ("__" not in name and _SERVICE_LINK.search(name))
        ):
            continue
        # Other texts stay texts, which pydantic converts by the type of the setting. Read as YAML they would change:
        # a model named "on" would become True, and a key such as "007" a number.
        value: Any = text
        if text.startswith(("[", "{")):
            try:
                value = parse_json(text)
            except ValueError as error:
                raise ConfigurationError(f"variable {name}: not valid JSON: {error}") from error
        # Merged like every source, so that RETRIEVER_LISTEN__HTTP_PORT keeps the other settings of ``listen``.
        values = merge(values, _nested(name[len(prefix) :].lower().split("__"), value))
    return values


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def _unknown_keys(
    model: type[BaseModel], values: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            yield (*above, key), list(model.model_fields)
        elif isinstance(value, Mapping):
            nested = _models_of(field, value)
            # With several candidates (a union without a key, or an unknown key) pydantic reports the error.
            if len(nested) == 1:
                yield from _unknown_keys(nested[0], value, (*above, key))


def _models_of(field: FieldInfo, value: Mapping[str, Any]) -> list[type[BaseModel]]:
    """Return the models that ``value`` may be; of a union keyed on a setting, the one with the value's key."""
    models = list(_models_in(field.annotation))
    if isinstance(field.discriminator, str):
        key = value.get(field.discriminator)
        models = [model for model in models if model.model_fields[field.discriminator].default == key]
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for argument in get_args(annotation):
            yield from _models_in(argument)
