"""The curriculum: what rests and for how long, its bound, and that its state is all that a resume needs."""

import itertools

import pytest

from searchrl.domain.question import Question
from services.trainer.rollouts.curriculum import Curriculum, CurriculumSettings
from services.trainer.rollouts.mixture import QuestionSource
from services.trainer.rollouts.task_source import TaskSource

ALWAYS, NEVER, MIXED = (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)


def curriculum(questions: int = 10, **settings: float) -> Curriculum:
    return Curriculum(CurriculumSettings.model_validate({"window": 2, **settings}), questions)


def visit(found: Curriculum, successes: tuple[float, ...], question_id: str = "q") -> int:
    """Take turns until the question is rolled out, with this result; return the turns that it rested."""
    rested = sum(1 for _ in itertools.takewhile(lambda _: found.skips(question_id), itertools.count()))
    found.observe(question_id, successes)
    return rested


@pytest.mark.parametrize("extreme", [ALWAYS, NEVER])
def test_a_question_without_a_signal_rests_ever_longer(extreme: tuple[float, ...]) -> None:
    found = curriculum(longest_rest=4)
    # two visits fill the window; each later one still has the same result and doubles the rest up to the longest
    assert [visit(found, extreme) for _ in range(6)] == [0, 0, 1, 2, 4, 4]


def test_a_question_that_teaches_again_starts_anew() -> None:
    found = curriculum()
    assert [visit(found, one) for one in (NEVER, NEVER, NEVER, MIXED, NEVER, NEVER, MIXED)] == [0, 0, 1, 2, 0, 0, 1]
    assert found.state() == {}
    turned = curriculum()  # from never to always is a change, too
    assert [visit(turned, one) for one in (NEVER, NEVER, NEVER, ALWAYS, ALWAYS, ALWAYS)] == [0, 0, 1, 2, 0, 1]


def test_the_stated_share_stays_active() -> None:
    found = curriculum(questions=4, window=1, min_active=0.5)
    for name in ("a", "b", "c"):
        found.observe(name, ALWAYS)
    assert found.resting == 2 and [found.skips(name) for name in ("a", "b", "c")] == [True, True, False]
    assert found.resting == 0
    assert curriculum(questions=10, min_active=0.9)._most_resting == 1


def test_without_a_window_or_a_measured_success_nothing_rests() -> None:
    off = curriculum(window=0)
    assert [visit(off, ALWAYS) for _ in range(5)] == [0] * 5
    unmeasured = curriculum()
    assert [visit(unmeasured, ()) for _ in range(5)] == [0] * 5
    assert off.state() == unmeasured.state() == {}


def test_a_late_result_of_an_earlier_visit_ends_a_rest() -> None:
    found = curriculum(window=1)
    found.observe("q", ALWAYS)
    found.observe("q", MIXED)
    assert found.resting == 0 and not found.skips("q")


def test_results_count_at_the_end_of_their_step_in_the_order_of_their_groups() -> None:
    found = curriculum(questions=2, window=1, min_active=0.5)
    for group_id, name in ((7, "b"), (3, "a")):  # b finished first
        found.measure(group_id, name, ALWAYS)
    assert found.state() == {} and not found.skips("a")
    found.end_step()
    assert found.resting == 1 and found.skips("a") and not found.skips("b")


def source_of(settings: CurriculumSettings) -> TaskSource:
    questions = tuple(Question(f"q{number}", "?", ("X",)) for number in range(6))
    return TaskSource.mix([QuestionSource("", questions)], seed=1, curriculum=settings)


def draw(source: TaskSource, count: int) -> list[str]:
    """Draw groups; even questions are always solved, odd ones now and then."""
    drawn: list[str] = []
    for _ in range(count):
        group = source.next()
        assert source.group(group.group_id) == group  # a group that starts again has the same question
        drawn.append(group.name)
        source.curriculum.observe(group.question.id, ALWAYS if int(group.question.id[1:]) % 2 == 0 else MIXED)
    return drawn


def test_a_resumed_source_draws_the_same_groups() -> None:
    settings = CurriculumSettings(window=1, min_active=0.5)
    whole = draw(source_of(settings), 40)
    first = source_of(settings)
    before = draw(first, 17)
    resumed = source_of(settings)
    resumed.next_group_id = first.next_group_id
    resumed.curriculum.restore({name: list(values) for name, values in first.curriculum.state().items()})
    assert before + draw(resumed, 23) == whole
    drawn = [name.partition("@")[0] for name in whole]
    assert sum(int(name[1:]) % 2 for name in drawn) > 25  # of 20 without a curriculum
    assert len(set(whole)) == len(whole)


def test_a_curriculum_that_is_off_changes_no_draw() -> None:
    questions = tuple(Question(f"q{number}", "?", ("X",)) for number in range(6))
    plain = TaskSource(questions, seed=1)
    assert draw(source_of(CurriculumSettings()), 20) == draw(plain, 20)
