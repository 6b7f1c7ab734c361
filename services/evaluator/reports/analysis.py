"""Computes every number of a report, once for the page and the JSON file."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from searchrl.domain.answer import Usage, Verdict
from searchrl.errors import OUTAGE_KINDS
from searchrl.statistics.intervals import NO_ESTIMATE, Estimate, bootstrap_proportion
from searchrl.statistics.paired_difference import PairedDifference, holm, paired_difference
from services.evaluator.records.episode import NOT_APPLICABLE, Episode
from services.evaluator.records.evaluation_run import (
    CLOSED_BOOK,
    CONTROL_METHODS,
    NAIVE_RAG,
    ORACLE_DOCUMENTS,
    RANDOM_RETRIEVER,
)
from services.evaluator.reports.report_columns import ReportColumn, ReportInput
from services.evaluator.runs.provenance_guard import ProvenanceValues, collect_provenance
from services.evaluator.scoring.measures import ACCURACY, summarize, values_by_question

MAX_VALUES_PER_KEY = 8
"""A key of more values, such as an id or a date, has too few questions per value, and too many points for a chart."""
MAX_BREAKDOWNS = 12
"""Each is a table and a chart; the first metadata keys of the question file are shown."""


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """One column in numbers. ``on_common`` is the accuracy on the questions that every column answered."""

    name: str
    method: str
    is_control: bool
    done: int
    total: int
    outcomes: Mapping[str, int]
    estimates: Mapping[str, Estimate]
    on_common: Estimate
    gap_closed: float | None
    judge_versions: tuple[str, ...]
    decided_by_judge: int

    @property
    def not_applicable(self) -> int:
        """Questions that the method does not apply to."""
        return self.outcomes.get(NOT_APPLICABLE, 0)

    @property
    def applicable(self) -> int:
        return self.total - self.not_applicable

    @property
    def lost(self) -> dict[str, int]:
        """Questions lost to outages, by kind."""
        return {kind: count for kind, count in self.outcomes.items() if kind in OUTAGE_KINDS}

    @property
    def refused(self) -> dict[str, int]:
        """Questions refused permanently, by kind."""
        return {
            kind: count for kind, count in self.outcomes.items() if kind not in OUTAGE_KINDS and kind != NOT_APPLICABLE
        }

    @property
    def failed(self) -> int:
        return sum(self.outcomes.values()) - self.not_applicable

    @property
    def coverage(self) -> float:
        return self.done / self.applicable if self.applicable else 0.0

    @property
    def accuracy(self) -> Estimate:
        return self.estimates.get(ACCURACY.name, NO_ESTIMATE)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy of ``first`` minus accuracy of ``second``, paired. ``adjusted_p`` is Holm's over all comparisons."""

    first: str
    second: str
    result: PairedDifference
    adjusted_p: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Accuracy by the values of one metadata key: ``cells[column][value]``."""

    key: str
    values: tuple[str, ...]
    sizes: Mapping[str, int]
    cells: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls, which show whether the benchmark measures search; None for a control that was not run.

    Attributes:
        oracle_wrong: share of questions that are answered wrongly even from the gold passages.
        gold_checked: gold passages that were looked up in the corpus; 0: none were.
        with_gold: questions whose gold passages are known; ``missing`` of them need a passage that the corpus lacks.
        unanswerable: share of the questions that lack a gold passage or that the oracle gets wrong, among the
            ``unanswerable_of`` questions for which this is known.
    """

    closed_book: Estimate | None
    oracle: Estimate | None
    random_retriever: Estimate | None
    oracle_wrong: float | None
    gold_checked: int
    with_gold: int
    missing: int
    unanswerable: float | None
    unanswerable_of: int


@dataclass(frozen=True, slots=True)
class RoleTokens:
    """Prompt and completion tokens of one column by role: means over its answers, and the sum for the judge."""

    column: str
    generator: tuple[float, float]
    searcher: tuple[float, float]
    judge: tuple[int, int]

    @property
    def total(self) -> float:
        """Tokens of the method itself per question, without those of judging."""
        return sum(self.generator) + sum(self.searcher)


@dataclass(frozen=True, slots=True)
class Analysis:
    """All numbers of a report, and the models, index and prompts that they come from."""

    columns: tuple[ColumnSummary, ...]
    baseline: str
    common: int
    comparisons: tuple[Comparison, ...]
    breakdowns: tuple[Breakdown, ...]
    controls: Controls
    tokens: tuple[RoleTokens, ...]
    provenance: ProvenanceValues


def analyze(data: ReportInput, *, baseline: str = "", compare: tuple[str, str] | None = None) -> Analysis:
    """Compute all numbers of a report.

    Args:
        baseline: the column that the others are compared with; if empty, naive RAG or else the first one.
        compare: (untrained, trained): one more comparison.
    """
    scores = {column.name: values_by_question(column.episodes, ACCURACY) for column in data.columns}
    reference = _choose_baseline(data.columns, baseline)
    # Accuracies over different questions do not compare: a column that lost the hard ones looks better.
    common = set.intersection(*(set(values) for values in scores.values()))
    return Analysis(
        columns=_summarize_columns(data.columns, scores, common, reference),
        baseline=reference,
        common=len(common),
        comparisons=_compare_columns(data.columns, scores, reference, compare),
        breakdowns=_break_down(data, scores),
        controls=_read_controls(data, scores),
        tokens=tuple(_average_tokens(column) for column in data.columns if column.answered),
        provenance=collect_provenance(_label_rows(data.columns)),
    )


def _label_rows(columns: Sequence[ReportColumn]) -> Iterator[Episode]:
    """The answers, under the names that the report shows: columns of one label from two runs may differ."""
    for column in columns:
        yield from (replace(row, label=column.name) for row in column.answered)


def _average_tokens(column: ReportColumn) -> RoleTokens:
    rows = column.answered
    verdicts = _verdicts(rows)

    def mean(read: Callable[[Usage], int]) -> float:
        return sum(read(row.answer.usage) for row in rows) / len(rows)

    return RoleTokens(
        column.name,
        generator=(mean(lambda usage: usage.prompt_tokens), mean(lambda usage: usage.completion_tokens)),
        searcher=(
            mean(lambda usage: usage.searcher_prompt_tokens),
            mean(lambda usage: usage.searcher_completion_tokens),
        ),
        judge=(
            sum(verdict.prompt_tokens for verdict in verdicts),
            sum(verdict.completion_tokens for verdict in verdicts),
        ),
    )


def _verdicts(rows: Sequence[Episode]) -> list[Verdict]:
    return [row.verdict for row in rows if row.verdict is not None]


def _choose_baseline(columns: Sequence[ReportColumn], wanted: str) -> str:
    names = [column.name for column in columns]
    if wanted in names:
        return wanted
    return next((column.name for column in columns if column.method == NAIVE_RAG), names[0])


def _summarize_columns(
    columns: Sequence[ReportColumn], scores: Mapping[str, Mapping[str, float]], common: set[str], baseline: str
) -> tuple[ColumnSummary, ...]:
    oracle = next((scores[column.name] for column in columns if column.method == ORACLE_DOCUMENTS), {})
    summaries = []
    for column in columns:
        rows = column.answered
        # Sorted: the resamples are seeded, and refer to positions.
        on_common = bootstrap_proportion([scores[column.name][question] for question in sorted(common)])
        summaries.append(
            ColumnSummary(
                name=column.name,
                method=column.method,
                is_control=column.method in CONTROL_METHODS,
                done=len(rows),
                total=column.total,
                outcomes=Counter(episode.failure for episode in column.episodes if episode.failure),
                estimates=summarize(rows),
                on_common=on_common,
                gap_closed=_compute_gap_closed(scores[column.name], scores[baseline], oracle),
                judge_versions=tuple(sorted({one.judge_version for one in _verdicts(rows) if one.judge_version})),
                decided_by_judge=sum(verdict.decided_by == "judge" for verdict in _verdicts(rows)),
            )
        )
    return tuple(summaries)


def _compute_gap_closed(
    method: Mapping[str, float], baseline: Mapping[str, float], oracle: Mapping[str, float]
) -> float | None:
    """The share of the gap between the baseline and oracle documents that a method closes.

    Only questions that all three have count. 0 is the baseline, 1 the oracle; None if the oracle is not better.
    """
    common = method.keys() & baseline.keys() & oracle.keys()
    if not common:
        return None
    # Sums over the same questions have the ratio of the means. Baseline 40, oracle 80 and method 55 of 100: 15 / 40 =
    # 0.375.
    reached, start, end = (math.fsum(scores[name] for name in common) for scores in (method, baseline, oracle))
    return (reached - start) / (end - start) if end > start else None


def _compare_columns(
    columns: Sequence[ReportColumn],
    scores: Mapping[str, Mapping[str, float]],
    baseline: str,
    compare: tuple[str, str] | None,
) -> tuple[Comparison, ...]:
    """Every column against the baseline, and trained against untrained if asked for; p-values adjusted over all."""
    # All comparisons of the page are adjusted together: of 20 true null hypotheses one would be "significant" at 5 %.
    pairs = [(column.name, baseline) for column in columns if column.name != baseline]
    if compare is not None and compare[0] in scores and compare[1] in scores:
        untrained, trained = compare
        if (trained, untrained) not in pairs:
            pairs.insert(0, (trained, untrained))
    results = [paired_difference(scores[first], scores[second]) for first, second in pairs]
    adjusted = holm([result.p_value for result in results])
    return tuple(
        Comparison(first, second, result, p)
        for (first, second), result, p in zip(pairs, results, adjusted, strict=True)
    )


def _break_down(data: ReportInput, scores: Mapping[str, Mapping[str, float]]) -> tuple[Breakdown, ...]:
    """One breakdown for each metadata key, and for the source, that has two to ``MAX_VALUES_PER_KEY`` values."""
    keys: dict[str, dict[str, list[str]]] = {}
    for question in data.questions.values():
        # The source comes last, so that it is not replaced by a metadata key of that name.
        labels = {**question.metadata, **({"source": question.source} if question.source else {})}
        for key, value in labels.items():
            keys.setdefault(key, {}).setdefault(value, []).append(question.id)
    breakdowns = []
    for key, groups in keys.items():
        if not 2 <= len(groups) <= MAX_VALUES_PER_KEY or len(breakdowns) == MAX_BREAKDOWNS:
            continue
        values = tuple(sorted(groups, key=_natural_order))
        cells = {
            name: {
                value: bootstrap_proportion([column[question] for question in groups[value] if question in column])
                for value in values
            }
            for name, column in scores.items()
        }
        breakdowns.append(Breakdown(key, values, {value: len(groups[value]) for value in values}, cells))
    return tuple(breakdowns)


def _natural_order(value: str) -> tuple[int, float, str]:
    """Sort key: numbers by size, then words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _read_controls(data: ReportInput, scores: Mapping[str, Mapping[str, float]]) -> Controls:
    name_of = {column.method: column.name for column in data.columns}

    def estimate(method: str) -> Estimate | None:
        values = scores.get(name_of.get(method, ""))
        return bootstrap_proportion(list(values.values())) if values else None

    oracle = scores.get(name_of.get(ORACLE_DOCUMENTS, ""), {})
    wrong = {question for question, value in oracle.items() if value == 0}
    with_gold = [question for question in data.questions.values() if question.gold_passage_ids]
    lacking = {question.id for question in with_gold if data.missing_gold.intersection(question.gold_passage_ids)}
    # A question counts if the oracle answered it, or if its gold passages were looked up; of all others nothing is
    # known.
    known = set(oracle) | ({question.id for question in with_gold} if data.gold_checked else set())
    return Controls(
        closed_book=estimate(CLOSED_BOOK),
        oracle=estimate(ORACLE_DOCUMENTS),
        random_retriever=estimate(RANDOM_RETRIEVER),
        oracle_wrong=len(wrong) / len(oracle) if oracle else None,
        gold_checked=data.gold_checked,
        with_gold=len(with_gold),
        missing=len(lacking),
        unanswerable=len(wrong | lacking) / len(known) if known else None,
        unanswerable_of=len(known),
    )
