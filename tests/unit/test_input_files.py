"""JSON files of users that are nested too deep for the parser are refused with a sentence, whoever reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from searchrl.agent.profile import SearcherProfile
from searchrl.datasets.question_file import read_questions
from searchrl.errors import ConfigurationError, InvalidRequest
from searchrl.model_server.vllm_command import require_chat_template
from searchrl.platform.settings import ServiceSettings
from searchrl.rewards.baseline_cache import BaselineCache
from searchrl.storage.artifact_manifest import MANIFEST_FILE, MARKER, read_marker, verify_input
from searchrl.tokenization.model_files import context_window
from services.evaluator.baselines.s3_files import import_output_sequences
from services.evaluator.reports.charts import read_training_metrics

# CPython's parser stops at some thousands of levels at the most, depending on the version.
TOO_DEEP = '{"a":' * 200_000

READERS: dict[str, Callable[[Path], object]] = {
    "searcher.json": lambda path: SearcherProfile.from_json(path.read_text()),
    "config.json": lambda path: context_window(path.parent),
    "tokenizer_config.json": lambda path: require_chat_template(str(path.parent), None),
    MANIFEST_FILE: lambda path: verify_input(path.parent),
    "baseline.json": BaselineCache.load,
    "s3_output_sequences.json": import_output_sequences,
    "metrics.jsonl": read_training_metrics,
    "questions.jsonl": read_questions,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_nested_too_deep_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TOO_DEEP + "\n")
    with pytest.raises((ConfigurationError, InvalidRequest), match="nested too deep"):
        READERS[name](tmp_path / name)


def test_a_fetch_is_repeated_if_the_marker_of_the_last_one_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(TOO_DEEP)
    assert read_marker(tmp_path) is None


class _Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="INPUTS_")

    names: list[str] = Field(default=[])


@pytest.mark.parametrize("value", ["[" * 200_000, f"[{'1' * 5_000}]"])  # the second is over Python's limit of digits
def test_a_variable_that_no_parser_takes_is_refused_with_its_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INPUTS_NAMES", value)
    with pytest.raises(ConfigurationError, match="variable INPUTS_NAMES: not valid JSON"):
        _Settings.from_environment([])
