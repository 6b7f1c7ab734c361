"""The three texts of a question are derived from its text and its options unless they are given."""

from searchrl.domain.question import Choice, Question, with_options

CHOICES = (Choice("A", "water"), Choice("B", "fire"))
WITH_OPTIONS = "Which?\nOptions:\nA: water\nB: fire"


def test_a_plain_question_has_one_text() -> None:
    question = Question("q", "Who?")
    assert question.text == question.generator_text == question.retrieval_query == "Who?"


def test_options_are_shown_to_the_generator_and_never_searched_with() -> None:
    assert with_options("Which?", CHOICES) == WITH_OPTIONS
    apart = Question("q", "Which?", choices=CHOICES)
    assert (apart.text, apart.generator_text, apart.retrieval_query) == ("Which?", WITH_OPTIONS, "Which?")
    inside = Question("q", WITH_OPTIONS, choices=CHOICES)
    assert (inside.text, inside.generator_text, inside.retrieval_query) == (WITH_OPTIONS, WITH_OPTIONS, "Which?")
    typed = Question("q", WITH_OPTIONS)  # as a person writes it in a chat
    assert (typed.generator_text, typed.retrieval_query) == (WITH_OPTIONS, "Which?")


def test_given_texts_are_kept() -> None:
    question = Question("q", WITH_OPTIONS, choices=CHOICES, generator_text="Tell me.", retrieval_query="which")
    assert (question.generator_text, question.retrieval_query) == ("Tell me.", "which")
