"""Loads the stored columns of a report, under the names that it shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import Conflict, InvalidRequest, NotFound
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import RunRecord
from services.evaluator.store.run_store import RunStore


@dataclass(frozen=True, slots=True)
class ColumnSource:
    """One column of one run. A report may join columns of several runs, such as before and after training."""

    run_id: str
    label: str
    shown_as: str = ""

    @property
    def name(self) -> str:
        return self.shown_as or self.label


@dataclass(frozen=True, slots=True)
class ReportColumn:
    """A column with its rows, under the name that the report shows."""

    name: str
    method: str
    run_id: str
    total: int
    episodes: tuple[Episode, ...]

    @property
    def answered(self) -> tuple[Episode, ...]:
        return tuple(episode for episode in self.episodes if not episode.failure)


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report is computed from. ``gold_checked`` 0: no gold passage was looked up in the corpus."""

    records: tuple[RunRecord, ...]
    columns: tuple[ReportColumn, ...]
    questions: dict[str, Question]
    gold_checked: int
    missing_gold: frozenset[str]


def load_columns(store: RunStore, sources: Sequence[ColumnSource]) -> ReportInput:
    """Read the columns.

    Raises:
        NotFound: a run or a label does not exist.
        Conflict: the same question id means different questions in two runs.
        InvalidRequest: two columns have the same name, or no column is requested.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise InvalidRequest("a report needs at least one column, and each its own name")
    # By run: a report of one run has several columns of it, and its questions are read once.
    records: dict[str, RunRecord] = {}
    questions: dict[str, Question] = {}
    columns: list[ReportColumn] = []
    checked, missing = 0, frozenset[str]()
    for source in sources:
        if source.run_id not in records:
            records[source.run_id] = store.run(source.run_id)
            _merge_questions(questions, store.questions(source.run_id))
            run_checked, run_missing = store.missing_gold(source.run_id)
            checked, missing = max(checked, run_checked), missing | run_missing
        record = records[source.run_id]
        method = next((spec.method for spec in record.columns if spec.name == source.label), None)
        if method is None:
            raise NotFound(f"run {source.run_id!r} has no column {source.label!r}")
        episodes = tuple(store.episodes(source.run_id, source.label))
        columns.append(ReportColumn(source.name, method, source.run_id, record.total_questions, episodes))
    return ReportInput(tuple(records.values()), tuple(columns), questions, checked, missing)


def list_columns(store: RunStore, run_id: str) -> list[ColumnSource]:
    """Every column of one run."""
    return [ColumnSource(run_id, column.name) for column in store.run(run_id).columns]


def load_passages(store: RunStore, column: ReportColumn, episode: Episode) -> dict[str, Passage]:
    """The passages that an episode refers to, by id."""
    ids = [*episode.answer.documents, *(name for step in episode.answer.steps for name in step.found)]
    return store.passages(column.run_id, ids)


def _merge_questions(questions: dict[str, Question], more: Sequence[Question]) -> None:
    for question in more:
        # Columns are compared by question id, so one id must mean one question with one set of golden answers.
        known = questions.setdefault(question.id, question)
        if known.text != question.text or known.golden_answers != question.golden_answers:
            raise Conflict(f"question {question.id!r} differs between the runs; compare runs of one question file")
