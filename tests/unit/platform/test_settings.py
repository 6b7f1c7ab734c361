"""Settings come from defaults, a YAML file, the environment and --set; a wrong name is refused with the nearest one."""

from pathlib import Path

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import SettingsConfigDict

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import ServiceSettings


class Limits(BaseModel):
    max_top_k: int = Field(default=5, ge=1)


class ExampleSettings(ServiceSettings):
    """Settings of an example."""

    model_config = SettingsConfigDict(env_prefix="EXAMPLE_")

    limits: Limits = Limits()
    names: list[str] = Field(default=[])
    title: str = "none"


def test_later_sources_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "example.yaml"
    config.write_text("limits: {max_top_k: 6}\nlisten: {http_port: 1}\nlog_format: text\n")
    monkeypatch.setenv("EXAMPLE_LIMITS__MAX_TOP_K", "7")
    monkeypatch.setenv("EXAMPLE_NAMES", '["a", "b"]')
    settings = ExampleSettings.from_environment(["--config", str(config), "--set", "listen.grpc_port=0"])
    assert settings.limits.max_top_k == 7  # the variable wins over the file
    assert (settings.listen.http_port, settings.listen.grpc_port) == (1, 0)  # both, merged
    assert settings.log_format == "text"
    assert settings.names == ["a", "b"]


def test_the_config_file_may_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("limits: {max_top_k: 9}")
    monkeypatch.setenv("EXAMPLE_CONFIG", str(tmp_path / "c.yaml"))
    assert ExampleSettings.from_environment([]).limits.max_top_k == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "listn.http_port=0"], "did you mean 'listen'"),
        (["--set", "limits.max_topk=1"], "under 'limits'.*did you mean 'max_top_k'"),
        (["--set", "limits.max_top_k=0"], "greater than or equal to 1"),
        (["--set", "limits.max_top_k"], "--set takes name=value"),
        (["--confg", "x"], "unknown flag '--confg': did you mean '--config'"),
        (["--config", "/does/not/exist.yaml"], "cannot read the settings file"),
    ],
)
def test_a_wrong_setting_is_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        ExampleSettings.from_environment(arguments)
    assert "\n" not in str(caught.value)


def test_an_empty_variable_is_an_empty_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker Compose passes a variable on as empty if its own variable is not set."""
    monkeypatch.setenv("EXAMPLE_TITLE", "")
    assert ExampleSettings.from_environment([]).title == ""


def test_a_misspelled_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_LIMITS__MAX_TOPK", "3")
    with pytest.raises(ConfigurationError, match=r"EXAMPLE_LIMITS__MAX_TOPK.*did you mean 'max_top_k'"):
        ExampleSettings.from_environment([])


def test_variables_that_kubernetes_adds_for_a_service_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("EXAMPLE_SERVICE_PORT_HTTP", "80")
    monkeypatch.setenv("EXAMPLE_PORT_8080_TCP_ADDR", "10.0.0.1")
    assert ExampleSettings.from_environment([]).limits.max_top_k == 5


@pytest.mark.parametrize(
    "content",
    ["- a\n- b\n", "a: [", "a: b: c", "\udcff: 1", "a: 2026-13-45", "a: \0", "[" * 5000, "? [a]\n: b", "a: !!x b"],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"c\.yaml"):
        ExampleSettings.from_environment(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("content", ["1: 2", "null: 3", "listen: {1: 2}", "2026-01-01: x"])
def test_a_name_that_is_no_text_is_an_unknown_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match="unknown setting"):
        ExampleSettings.from_environment(["--config", str(tmp_path / "c.yaml")])
