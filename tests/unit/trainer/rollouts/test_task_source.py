"""Groups of questions: each has an id of its own, and a resumed run finds the same order again.

Equal questions and later epochs never share a group, because the id comes from the position and not from the text.
"""

from searchrl.domain.question import Question
from services.trainer.rollouts.task_source import TaskSource

TWINS = [Question("a", "Who?", ("X",)), Question("b", "Who?", ("X",)), Question("c", "Which?", ("Y",))]


def test_equal_questions_and_later_epochs_have_groups_of_their_own() -> None:
    source = TaskSource(TWINS, seed=1)
    prompts = [source.next() for _ in range(4 * len(TWINS))]
    assert len({prompt.name for prompt in prompts}) == len(prompts)
    assert [prompt.group_id for prompt in prompts] == list(range(len(prompts)))


def test_each_epoch_draws_every_question_once_in_an_order_of_its_own() -> None:
    questions = [Question(f"q{number}", "?", ("X",)) for number in range(20)]
    source = TaskSource(questions, seed=1)
    epochs = [[source.next().question.id for _ in questions] for _ in range(3)]
    assert all(sorted(epoch) == sorted(question.id for question in questions) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_group_is_a_function_of_questions_seed_and_id() -> None:
    first, second = TaskSource(TWINS, seed=1), TaskSource(TWINS, seed=1)
    drawn = [first.next() for _ in range(9)]
    assert [second.group(number) for number in (8, 0, 5)] == [drawn[8], drawn[0], drawn[5]]
    second.next_group_id = 7
    assert second.next() == drawn[7]
    other = TaskSource(TWINS * 1, seed=2)
    assert [other.next() for _ in range(9)] != drawn
