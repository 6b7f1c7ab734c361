"""Mixtures of question sets: exact shares, an order of their own for each set, and one source that changes nothing."""

from collections import Counter
from pathlib import Path

import pytest

from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError
from services.trainer.rollouts.mixture import (
    LONGEST_WINDOW,
    MixtureSource,
    QuestionSource,
    apportion,
    check_mixture,
    read_sources,
)
from services.trainer.rollouts.task_source import TaskSource


def questions(prefix: str, count: int) -> tuple[Question, ...]:
    return tuple(Question(f"{prefix}{number}", "?", ("X",)) for number in range(count))


NQ, HOTPOT, BIO = (QuestionSource("nq", questions("n", 7), 0.5), QuestionSource("hotpot", questions("h", 5), 0.3),
                   QuestionSource("bio", questions("b", 2), 0.2))  # fmt: skip


def test_a_window_is_the_shortest_that_has_exact_shares() -> None:
    assert apportion([0.5, 0.3, 0.2]) == [5, 3, 2]
    assert apportion([20, 10]) == [2, 1]
    assert apportion([0.1, 0.1]) == [1, 1]  # and not the binary fractions nearest to them


def test_the_largest_remainders_get_what_rounding_down_leaves_over() -> None:
    # Thirds of 10,000 are 3333.3..: the remainders are 0.33, 0.33 and, of 3333.4, 0.4
    assert apportion([0.33333, 0.33333, 0.33334]) == [3333, 3333, 3334]
    assert sum(apportion([79_168, 90_447, 11])) == LONGEST_WINDOW


def test_every_window_has_the_exact_shares_and_every_step_nearly() -> None:
    source = TaskSource.mix([NQ, HOTPOT, BIO], seed=1)
    drawn = [source.next().source for _ in range(100)]
    for start in range(90):  # any ten groups in a row, wherever they begin
        assert Counter(drawn[start : start + 10]) == {"nq": 5, "hotpot": 3, "bio": 2}
    for count in range(1, 100):
        seen = Counter(drawn[:count])
        assert all(abs(seen[one.name] - count * one.weight) < 1 for one in (NQ, HOTPOT, BIO))


def test_each_set_has_epochs_of_its_own() -> None:
    source = TaskSource.mix([NQ, HOTPOT, BIO], seed=1)
    drawn = [source.next() for _ in range(140)]
    assert [group.group_id for group in drawn] == list(range(140))
    for one in (NQ, HOTPOT, BIO):
        own = [group for group in drawn if group.source == one.name]
        size = len(one.questions)
        for epoch in range(len(own) // size):
            visit = own[epoch * size : (epoch + 1) * size]
            assert {group.epoch for group in visit} == {epoch}
            assert {group.question.id for group in visit} == {question.id for question in one.questions}


def test_sets_of_equal_size_have_different_orders() -> None:
    first, second = QuestionSource("en", questions("e", 30)), QuestionSource("fr", questions("f", 30))
    source = TaskSource.mix([first, second], seed=1)
    orders: dict[str, list[str]] = {"en": [], "fr": []}
    for group in (source.next() for _ in range(60)):
        orders[group.source].append(group.question.id[1:])
    assert orders["en"] != orders["fr"]


def test_a_mixture_of_one_set_draws_what_its_questions_alone_do() -> None:
    alone, mixed = TaskSource(NQ.questions, seed=3), TaskSource.mix([NQ], seed=3)
    assert [mixed.next().question for _ in range(30)] == [alone.next().question for _ in range(30)]
    assert (mixed.fingerprint, mixed.shares) == (alone.fingerprint, alone.shares)


def test_a_group_is_a_function_of_its_id() -> None:
    first, second = (TaskSource.mix([NQ, HOTPOT, BIO], seed=1) for _ in range(2))
    drawn = [first.next() for _ in range(60)]
    assert [second.group(number) for number in (57, 3, 20)] == [drawn[57], drawn[3], drawn[20]]
    second.next_group_id = 41
    assert [second.next() for _ in range(5)] == drawn[41:46]


def test_unusable_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="'a/b' is no name of a set"):
        check_mixture({"a/b": MixtureSource(questions=Path("q.jsonl"))})
    rare = {"big": MixtureSource(questions=Path("q"), weight=1e6), "rare": MixtureSource(questions=Path("r"))}
    with pytest.raises(ValueError, match=r"mixture.rare.weight is less than 1 in 10,000"):
        check_mixture(rare)


def test_an_id_that_two_sets_use_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text('{"id": "train_0", "question": "Who?", "golden_answers": ["X"]}\n')
    mixture = {name: MixtureSource(questions=tmp_path / name) for name in ("a", "b")}
    with pytest.raises(ConfigurationError, match="a and b both have a question with the id 'train_0'"):
        read_sources(mixture)
