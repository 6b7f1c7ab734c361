"""The small world's files: corpus and questions, their splits, and that a seed determines every byte."""

import json
from pathlib import Path

import pytest

from searchrl.domain.passage import Passage
from searchrl.small_world.files import SmallWorldFiles, write_small_world
from searchrl.small_world.reader import answer_from_passages, parse_fact


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder: Path, seed: int = 0, train_worlds: int = 3) -> SmallWorldFiles:
    sizes = {"questions_per_world": 20, "large_questions": 30}
    return write_small_world(folder, seed, train_worlds, test_worlds=2, **sizes, scale=0.1, large_scale=0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallWorldFiles:
    return write(tmp_path_factory.mktemp("small_world"))


def test_a_corpus_row_is_a_search_r1_passage_with_its_world(files: SmallWorldFiles) -> None:
    first = rows(files.corpus)[0]
    assert list(first) == ["id", "contents", "metadata"]
    assert first["id"] == "w000-000000"
    assert first["metadata"] == {"world": "w000"}
    passage = Passage.from_contents(first["id"], first["contents"])
    assert first["contents"] == f'"{passage.title}"\n{passage.text}'


def test_a_question_row_has_the_fields_of_question_files(files: SmallWorldFiles) -> None:
    first = rows(files.test)[0]
    assert list(first) == ["id", "question", "golden_answers", "gold_doc_ids", "filters", "metadata"]
    assert first["id"] == "w003-q0000"
    assert first["filters"] == {"world": "w003"}
    assert set(first["metadata"]) == {"hops", "split"}


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("test", 40), ("large", 30)])
def test_every_split_is_answered_by_its_gold_passages(files: SmallWorldFiles, split: str, count: int) -> None:
    texts = {row["id"]: row["contents"].partition("\n")[2] for row in rows(files.corpus)}
    questions = rows(getattr(files, split))
    assert len(questions) == count
    for question in questions:
        assert question["metadata"]["split"] == split
        gold = [texts[id] for id in question["gold_doc_ids"]]
        assert answer_from_passages(question["question"], gold) == question["golden_answers"][0]


def test_passage_and_question_ids_are_unique(files: SmallWorldFiles) -> None:
    for paths in ([files.corpus], [files.train, files.test, files.large]):
        ids = [row["id"] for path in paths for row in rows(path)]
        assert len(ids) == len(set(ids))


def test_unseen_worlds_share_hardly_a_fact_and_the_large_one_no_name(files: SmallWorldFiles) -> None:
    facts: dict[str, set] = {"train": set(), "test": set(), "large": set()}
    names: dict[str, set[str]] = {"train": set(), "test": set(), "large": set()}
    split_of = {"w000": "train", "w001": "train", "w002": "train", "w003": "test", "w004": "test", "w005": "large"}
    for row in rows(files.corpus):
        split = split_of[row["metadata"]["world"]]
        title, _, text = row["contents"].partition("\n")
        names[split].add(title)
        fact = parse_fact(text)
        if fact:
            facts[split].add(fact)
    assert not names["large"] & (names["train"] | names["test"])
    assert not facts["large"] & (facts["train"] | facts["test"])
    # a fact repeats by chance only: the same subject in two worlds, and one of at least 4 objects drawn twice
    assert len(facts["test"] & facts["train"]) < 0.05 * len(facts["test"])


def test_the_same_seed_writes_the_same_bytes(files: SmallWorldFiles, tmp_path: Path) -> None:
    again, other = write(tmp_path / "again"), write(tmp_path / "other", seed=1)
    for name in ("corpus", "train", "test", "large"):
        written = getattr(files, name).read_bytes()
        assert getattr(again, name).read_bytes() == written
        assert getattr(other, name).read_bytes() != written
    assert not list((tmp_path / "again").glob("*.tmp"))


def test_the_number_of_training_worlds_does_not_change_what_is_tested(files: SmallWorldFiles, tmp_path: Path) -> None:
    more = write(tmp_path, train_worlds=5)
    for split in ("test", "large"):
        texts = [[row["question"] for row in rows(getattr(made, split))] for made in (files, more)]
        assert texts[0] == texts[1]
