"""What a run asks its services at start, and compares its baselines with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from searchrl.domain.passage import Passage
from searchrl.domain.provenance import Provenance
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, NotFound, ServiceError, TooLarge, Unavailable
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion
from services.trainer.rewards.reward_settings import RewardSettings
from services.trainer.runs.service_pins import pin_services
from tests.fakes.in_memory_searcher import InMemorySearcher

QUESTIONS = [Question(f"q{number}", f"text {number}", ("gold",)) for number in range(8)]
PASSAGE = Passage("d", "title", "text 0")
VERSION = BaselineVersion("sha", "g7", 3, "llm", "judge@1", template_hash="prompt")


@dataclass
class Services:
    """All of them, naming themselves; the LLM refuses the questions that ``refused`` says."""

    refused: dict[str, ServiceError]
    generator: Any = None

    def __post_init__(self) -> None:
        self.searcher = InMemorySearcher([PASSAGE])
        self.generator = self

    async def index_generation(self, question: Question) -> str:
        return "g7"

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Any:
        if question in self.refused:
            raise self.refused[question]
        return SimpleNamespace(answer="a", model="llm", provenance=Provenance(template_hash="prompt"))

    async def judge(self, question: str, answer: str, golden_answers: Sequence[str], choices: Any = ()) -> Any:
        return SimpleNamespace(correct=True, judge_version="judge@1")


def config_of(tmp_path: Path, version: BaselineVersion = VERSION) -> Any:
    path = tmp_path / "baseline.json"
    BaselineCache(version, {question.id: Baseline("", "", True, True) for question in QUESTIONS}).save(path)
    return SimpleNamespace(reward=RewardSettings(kind="gain_beyond_rag", baseline_file=path))


PINS = {"index generation": "g7", "frozen LLM": "llm", "prompt of the frozen LLM": "prompt", "judge": "judge@1"}


async def test_each_service_is_named_by_what_it_says_of_itself(tmp_path: Path) -> None:
    assert await pin_services(config_of(tmp_path), Services({}), QUESTIONS) == PINS


@pytest.mark.parametrize("field", ["index_generation", "generator_model", "template_hash", "judge_version"])
async def test_baselines_of_something_else_do_not_start_a_run(tmp_path: Path, field: str) -> None:
    config = config_of(tmp_path, replace(VERSION, **{field: "another"}))
    with pytest.raises(ConfigurationError, match=f"made with {field} 'another'"):
        await pin_services(config, Services({}), QUESTIONS)


async def test_a_first_question_that_is_refused_is_not_the_end(tmp_path: Path) -> None:
    services = Services({"text 0": TooLarge("documents"), "text 1": TooLarge("documents")})
    assert await pin_services(config_of(tmp_path), services, QUESTIONS) == PINS


@pytest.mark.parametrize("error", [TooLarge("documents"), Unavailable("away")])
async def test_what_is_refused_for_all_or_away_is_told(tmp_path: Path, error: ServiceError) -> None:
    services = Services({question.generator_text: error for question in QUESTIONS})
    with pytest.raises(type(error)):
        await pin_services(config_of(tmp_path), services, QUESTIONS)


async def test_a_model_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model"):
        await pin_services(config_of(tmp_path), Services({"text 0": NotFound("no model 'x'")}), QUESTIONS)
