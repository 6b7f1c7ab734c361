"""What a run asks its services at its start and compares with its baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Provenance, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Choice, Question, question_sha256
from searchrl.errors import ConfigurationError, NotFound, ServiceError, TooLarge, Unavailable
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion
from services.trainer.rewards.generation import GainBeyondRagSettings
from services.trainer.runs.service_pins import Services, pin_services
from tests.fakes.in_memory_searcher import InMemorySearcher

QUESTIONS = [Question(f"q{number}", f"text {number}", ("gold",)) for number in range(8)]
PASSAGE = Passage("d", "title", "text 0")
VERSION = BaselineVersion(
    "sha", "g7", 3, "llm", "judge@1", "hybrid", "prompt", max_context_tokens=900, max_answer_tokens=50, temperature=0.0
)
MADE = Provenance("llm", template_hash="prompt", max_context_tokens=900, max_answer_tokens=50, temperature=0.0)


class ReportingGenerator(GeneratorClient):
    """Reports what it is; refuses the questions in ``refused``."""

    def __init__(self, refused: Mapping[str, ServiceError]) -> None:  # opens no channel
        self._refused = refused

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        if question in self._refused:
            raise self._refused[question]
        return Answer("a", provenance=MADE)

    async def judge(
        self, question: str, answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()
    ) -> Verdict:
        return Verdict(True, "judge", "judge@1")


def services_of(refused: Mapping[str, ServiceError]) -> Services:
    async def index_generation(_question: Question) -> str:
        return "g7"

    return Services(InMemorySearcher([PASSAGE]), ReportingGenerator(refused), index_generation)


def config_of(tmp_path: Path, version: BaselineVersion = VERSION) -> Any:
    path = tmp_path / "baseline.json"
    baselines = {
        question.id: Baseline(question.text, "", True, True, question_sha256=question_sha256(question))
        for question in QUESTIONS
    }
    BaselineCache(version, baselines).save(path)
    reward = GainBeyondRagSettings(baseline_file=path)
    return SimpleNamespace(reward=reward, services=SimpleNamespace(retrieval_mode="hybrid"))


PINS = {
    "index generation": "g7",
    "frozen LLM": "llm",
    "prompt of the frozen LLM": "prompt",
    "judge": "judge@1",
    "token budget of the documents": "900",
    "token budget of the answer": "50",
    "temperature of the frozen LLM": "0",
}


async def test_each_service_is_pinned_by_what_it_reports(tmp_path: Path) -> None:
    assert await pin_services(config_of(tmp_path), services_of({}), QUESTIONS, 3) == PINS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index_generation", "another"),
        ("generator_model", "another"),
        ("template_hash", "another"),
        ("judge_version", "another"),
        ("mode", "bm25"),
        ("top_k", 5),
        ("max_context_tokens", 400),
        ("max_answer_tokens", 10),
        ("temperature", 0.7),
    ],
)
async def test_baselines_of_something_else_do_not_start_a_run(tmp_path: Path, field: str, value: Any) -> None:
    config = config_of(tmp_path, replace(VERSION, **{field: value}))
    expected = f"made with {field} {value!r}, not .*; build it again .*build_baseline --help.* with --top-k 3"
    with pytest.raises(ConfigurationError, match=expected):
        await pin_services(config, services_of({}), QUESTIONS, 3)


async def test_every_difference_is_named_in_one_sentence(tmp_path: Path) -> None:
    config = config_of(tmp_path, replace(VERSION, top_k=5, mode="bm25"))
    with pytest.raises(ConfigurationError, match="with mode 'bm25', not 'hybrid', and with top_k 5, not 3;"):
        await pin_services(config, services_of({}), QUESTIONS, 3)


async def test_the_baselines_may_cover_more_questions_than_the_run_has(tmp_path: Path) -> None:
    assert await pin_services(config_of(tmp_path), services_of({}), QUESTIONS[3:], 3) == PINS


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(QUESTIONS[3], golden_answers=("another",)), "other texts or golden answers of question 'q3'; build"),
        (Question("q3", "another text", ("gold",)), "other texts or golden answers of question 'q3'; build"),
        (replace(QUESTIONS[3], id="new"), "no naive-RAG baseline for question 'new'; build"),
    ],
)
async def test_a_question_that_changed_since_does_not_start_a_run(
    tmp_path: Path, changed: Question, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await pin_services(config_of(tmp_path), services_of({}), [*QUESTIONS[:3], changed], 3)


async def test_if_the_first_question_is_refused_the_next_one_is_asked(tmp_path: Path) -> None:
    services = services_of({"text 0": TooLarge("documents"), "text 1": TooLarge("documents")})
    assert await pin_services(config_of(tmp_path), services, QUESTIONS, 3) == PINS


@pytest.mark.parametrize("error", [TooLarge("documents"), Unavailable("down")])
async def test_a_failure_for_all_questions_is_raised(tmp_path: Path, error: ServiceError) -> None:
    services = services_of({question.generator_text: error for question in QUESTIONS})
    with pytest.raises(type(error)):
        await pin_services(config_of(tmp_path), services, QUESTIONS, 3)


async def test_a_model_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model"):
        await pin_services(config_of(tmp_path), services_of({"text 0": NotFound("no model 'x'")}), QUESTIONS, 3)
