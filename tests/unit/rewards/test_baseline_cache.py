"""A baseline file is only read for the versions and questions that it was made for."""

import json
from pathlib import Path

import pytest

from searchrl.domain.question import Question
from searchrl.errors import Conflict, InvalidRequest, NotFound
from searchrl.rewards.baseline_cache import Baseline, BaselineCache, BaselineVersion

VERSION = BaselineVersion("abc", "g1", 3, "reader", "judge-1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    entries = {"q1": Baseline("who?", "Ann", True, False, "nq"), "q2": Baseline("wo?", "北京", False, False)}
    BaselineCache(VERSION, entries).save(tmp_path / "baseline.json")
    return tmp_path / "baseline.json"


def test_a_file_is_read_back_as_it_was_written(path: Path) -> None:
    cache = BaselineCache.load(path)
    assert cache.version == VERSION
    assert len(cache) == 2
    assert cache.rag_correct("q1")
    assert not cache.rag_correct("q2")
    assert cache.baseline("q2").answer == "北京"
    assert json.loads(path.read_text())["entries"][0]["question_id"] == "q1"


def test_a_missing_entry_is_an_error_that_names_the_question(path: Path) -> None:
    cache = BaselineCache.load(path)
    with pytest.raises(NotFound, match="'q3'"):
        cache.rag_correct("q3")
    cache.require_questions([Question("q1", "who?"), Question("q2", "wo?")])
    with pytest.raises(NotFound, match="'a', 'b', 'c' and 1 more"):
        cache.require_questions([Question("q1", "who?"), *(Question(name, "x") for name in "abcd")])


def test_an_import_knows_a_question_by_its_text_alone(path: Path) -> None:
    cache = BaselineCache.load(path)  # without hashes
    cache.require_questions([Question("q1", "who?", ("any",))])
    with pytest.raises(Conflict, match="of question 'q1'"):
        cache.require_questions([Question("q1", "who else?")])


def test_baselines_of_something_else_are_refused(path: Path) -> None:
    cache = BaselineCache.load(path)
    cache.require(questions_sha256="abc", top_k=3)
    with pytest.raises(Conflict, match="top_k 3, not 5"):
        cache.require(top_k=5)
    BaselineCache(BaselineVersion(), {}).require(top_k=5)  # an imported file has no version
    cache.require(top_k=None)  # and this caller requires none


def test_a_temperature_of_zero_is_not_an_unknown_one() -> None:
    cold = BaselineCache(BaselineVersion(temperature=0.0), {})
    cold.require(temperature=0.0)
    with pytest.raises(Conflict, match=r"temperature 0.0, not 0.5"):
        cold.require(temperature=0.5)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"format": "other"}', '{"format": "searchrl-rag-baseline-1", "entries": [{}], "version": {}}'],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InvalidRequest):
        BaselineCache.load(tmp_path / "x.json")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        BaselineCache.load(tmp_path / "none.json")
