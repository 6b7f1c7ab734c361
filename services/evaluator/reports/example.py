"""Chooses one question that shows the difference of two methods, and presents both answers side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from services.evaluator.records.episode import Episode
from services.evaluator.reports.analysis import Analysis
from services.evaluator.reports.report_columns import ReportColumn, ReportInput, load_passages
from services.evaluator.store.run_store import RunStore

SNIPPET_CHARACTERS = 320  # a few lines of the page: enough to recognize a passage


@dataclass(frozen=True, slots=True)
class ExamplePassage:
    """A passage as the page shows it. ``kept`` is None if no selection was made."""

    id: str
    title: str
    text: str
    is_gold: bool
    kept: bool | None = None


@dataclass(frozen=True, slots=True)
class ExampleStep:
    """One search and its passages; ``is_initial`` for the search with the question itself."""

    query: str
    is_initial: bool
    passages: tuple[ExamplePassage, ...]


@dataclass(frozen=True, slots=True)
class ExampleEpisode:
    """What one method did with the question."""

    name: str
    steps: tuple[ExampleStep, ...]
    documents: tuple[ExamplePassage, ...]
    answer: str
    correct: bool
    searches: int
    seconds: float
    stop_reason: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question with the episode of each of the chosen methods."""

    question: Question
    episodes: tuple[ExampleEpisode, ...]


def pick_example(store: RunStore, data: ReportInput, names: tuple[str, str]) -> Example | None:
    """The question that best shows the difference between two columns; None if they share no scored question."""
    columns = [column for name in names for column in data.columns if column.name == name]
    if len(columns) < 2:
        return None
    rows = [{row.question_id: row for row in column.answered if row.correct is not None} for column in columns]
    common = sorted(rows[0].keys() & rows[1].keys())
    if not common:
        return None
    # ``max`` keeps the first of equals, and ``common`` is sorted, so that every rendering shows the same question.
    chosen = max(common, key=lambda name: _rank_contrast(rows[0][name], rows[1][name]))
    question = data.questions[chosen]
    episodes = [
        _make_episode(column, by_question[chosen], question, load_passages(store, column, by_question[chosen]))
        for column, by_question in zip(columns, rows, strict=True)
    ]
    return Example(question, tuple(episodes))


def example_columns(analysis: Analysis) -> tuple[str, str]:
    """The baseline and the most accurate other method that is not a control."""
    others = [
        column
        for column in analysis.columns
        if column.name != analysis.baseline and not column.is_control and column.accuracy.count
    ]
    best = max(others, key=lambda column: column.accuracy.mean, default=None)
    return analysis.baseline, best.name if best else ""


def _rank_contrast(before: Episode, after: Episode) -> tuple[bool, bool, int, int]:
    """Sort key, largest best: wrong before and right after; then right; more searches; fewer documents."""
    return (
        bool(after.correct) and not before.correct,
        bool(after.correct),
        after.answer.searches,
        -len(after.answer.documents),
    )


def _make_episode(
    column: ReportColumn, episode: Episode, question: Question, passages: Mapping[str, Passage]
) -> ExampleEpisode:
    gold = set(question.gold_passage_ids)

    def make_passages(ids: Sequence[str], selected: Sequence[str] | None) -> tuple[ExamplePassage, ...]:
        return tuple(
            ExamplePassage(
                name,
                passages[name].title,
                _snippet(passages[name].text),
                name in gold,
                None if selected is None else name in selected,
            )
            for name in ids
            if name in passages
        )

    return ExampleEpisode(
        name=column.name,
        steps=tuple(
            ExampleStep(step.query, step.query == question.retrieval_query, make_passages(step.found, step.selected))
            for step in episode.answer.steps
        ),
        documents=make_passages(episode.answer.documents, None),
        answer=episode.answer.text,
        correct=bool(episode.correct),
        searches=episode.answer.searches,
        seconds=episode.answer.seconds,
        stop_reason=episode.answer.stop_reason,
    )


def _snippet(text: str) -> str:
    return text if len(text) <= SNIPPET_CHARACTERS else text[:SNIPPET_CHARACTERS].rsplit(" ", 1)[0] + " …"
