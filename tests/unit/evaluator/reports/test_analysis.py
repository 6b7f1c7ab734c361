"""The numbers of a report, computed from the stored episodes."""

from typing import Any

import pytest

from searchrl.domain.answer import Answer, Provenance, Usage, Verdict
from searchrl.errors import Conflict, InvalidRequest, NotFound
from services.evaluator.records.episode import NOT_APPLICABLE, Episode
from services.evaluator.reports.analysis import Analysis, analyze
from services.evaluator.reports.report_columns import ColumnSource, list_columns, load_columns
from services.evaluator.store.run_store import RunStore
from tests.unit.evaluator.reports.conftest import store_run


def analysis_of(store: RunStore, **options: Any) -> Analysis:
    return analyze(load_columns(store, list_columns(store, "r1")), **options)


def test_a_lost_question_leaves_the_mean_and_the_coverage(stored: RunStore) -> None:
    s3 = analysis_of(stored).columns[1]
    assert (s3.name, s3.done, s3.failed, s3.coverage) == ("s3", 3, 1, 0.75)
    assert s3.accuracy.mean == 1.0
    assert (s3.lost, s3.refused, s3.not_applicable) == ({"unavailable": 1}, {}, 0)


def test_columns_are_also_compared_on_the_questions_all_of_them_answered(stored: RunStore) -> None:
    analysis = analysis_of(stored)
    assert analysis.common == 3
    assert [round(column.on_common.mean, 3) for column in analysis.columns] == [0.333, 1.0, 0.0, 1.0]


def test_naive_rag_is_the_baseline_unless_another_is_named(stored: RunStore) -> None:
    assert analysis_of(stored).baseline == "rag"
    analysis = analysis_of(stored, baseline="direct")
    assert [(c.first, c.second) for c in analysis.comparisons] == [
        ("rag", "direct"),
        ("s3", "direct"),
        ("oracle", "direct"),
    ]


def test_comparisons_use_the_intersection(stored: RunStore) -> None:
    comparison = next(entry for entry in analysis_of(stored).comparisons if entry.first == "s3")
    assert comparison.result.count == 3
    assert comparison.result.difference == pytest.approx(2 / 3)
    assert comparison.adjusted_p >= comparison.result.p_value


def test_the_untrained_and_the_trained_searcher_are_compared_if_requested(stored: RunStore) -> None:
    comparisons = analysis_of(stored, compare=("direct", "s3")).comparisons
    assert (comparisons[0].first, comparisons[0].second) == ("s3", "direct")


def test_the_gap_is_measured_from_the_baseline_to_the_oracle(stored: RunStore) -> None:
    # s3 answered q0 to q2: there naive RAG has 1, the oracle 3 and s3 3
    by_name = {column.name: column.gap_closed for column in analysis_of(stored).columns}
    assert by_name["rag"] == 0.0
    assert by_name["oracle"] == 1.0
    assert by_name["s3"] == 1.0


def test_the_gap_is_measured_on_common_questions_only(store: RunStore) -> None:
    """Means over different questions would give a gap of any size and sign."""
    right = {"rag": {"q0", "q1"}, "s3": {"q0", "q1", "q2"}, "oracle": {"q0", "q1", "q2"}}
    store_run(store, "r1", right)
    for name in ("q0", "q1"):  # the oracle does not apply to q0 and q1
        row = Episode(label="oracle", question_id=name, failure=NOT_APPLICABLE, error="no gold passages")
        store.append("r1", row).result()
    by_name = {column.name: column for column in analysis_of(store).columns}
    assert by_name["s3"].gap_closed == 1.0  # over q2 and q3, where naive RAG has 0 and the oracle 1
    oracle = by_name["oracle"]
    assert (oracle.done, oracle.applicable, oracle.not_applicable, oracle.coverage) == (2, 2, 2, 1.0)
    assert (oracle.failed, oracle.lost, oracle.refused) == (0, {}, {})


def test_the_unanswerable_fraction_refers_to_the_questions_for_which_it_is_known(store: RunStore) -> None:
    store_run(store, "r1", {"rag": set(), "oracle": {"q0"}})
    for name in ("q2", "q3"):
        store.append("r1", Episode(label="oracle", question_id=name, failure=NOT_APPLICABLE)).result()
    controls = analysis_of(store).controls
    # Over q0 and q1: the oracle did not answer the others.
    assert (controls.unanswerable, controls.unanswerable_of) == (0.5, 2)


def test_refused_and_lost_questions_are_counted_apart(stored: RunStore) -> None:
    stored.append("r1", Episode(label="s3", question_id="q2", failure="too_large", error="over 8000")).result()
    s3 = analysis_of(stored).columns[1]
    assert (s3.lost, s3.refused, s3.failed) == ({"unavailable": 1}, {"too_large": 1}, 2)


def test_tokens_are_summed_up_by_role(stored: RunStore) -> None:
    for number, question in enumerate(("q0", "q1", "q2")):
        row = Episode(
            label="s3",
            question_id=question,
            answer=Answer(usage=Usage(100 * number, 3, 0, 1000, 50)),
            verdict=Verdict(True, "judge", "", prompt_tokens=7),
        )
        stored.append("r1", row).result()
    tokens = next(entry for entry in analysis_of(stored).tokens if entry.column == "s3")
    assert (tokens.generator, tokens.searcher, tokens.judge) == ((100, 3), (1000, 50), (21, 0))
    assert tokens.total == 1153


def test_both_values_of_a_changed_provenance_are_named(stored: RunStore) -> None:
    for question, model in (("q0", "m1"), ("q1", "m2")):
        row = Episode(label="s3", question_id=question, answer=Answer(provenance=Provenance(generator_model=model)))
        stored.append("r1", row).result()
    analysis = analysis_of(stored)
    assert analysis.provenance["generator_model"] == ("m1", "m2")
    assert analysis.provenance["judge_version"] == ("j1",)


def test_accuracy_is_broken_down_by_metadata(stored: RunStore) -> None:
    breakdown = analysis_of(stored).breakdowns[0]
    assert (breakdown.key, breakdown.values, dict(breakdown.sizes)) == ("hops", ("1", "2"), {"1": 2, "2": 2})
    assert breakdown.cells["rag"]["1"].mean == 0.5
    assert breakdown.cells["s3"]["2"].count == 1


def test_controls_show_what_cannot_be_answered(stored: RunStore) -> None:
    stored.set_missing_gold("r1", 1, [])
    controls = analysis_of(stored).controls
    assert controls.closed_book is not None
    assert controls.closed_book.mean == 0.0
    assert controls.oracle_wrong == 0.25
    assert controls.unanswerable == 0.25
    assert controls.random_retriever is None
    stored.set_missing_gold("r1", 1, ["g"])
    controls = analysis_of(stored).controls
    assert (controls.missing, controls.unanswerable) == (4, 1.0)


def test_columns_of_several_runs_are_joined_under_names_of_their_own(stored: RunStore) -> None:
    data = load_columns(stored, [ColumnSource("r1", "s3", "after"), ColumnSource("r1", "rag", "before")])
    assert [column.name for column in data.columns] == ["after", "before"]
    with pytest.raises(InvalidRequest):
        load_columns(stored, [ColumnSource("r1", "s3"), ColumnSource("r1", "s3")])
    with pytest.raises(InvalidRequest):
        load_columns(stored, [])
    with pytest.raises(NotFound, match="no column"):
        load_columns(stored, [ColumnSource("r1", "cot")])


def test_runs_of_different_questions_under_equal_ids_are_not_joined(stored: RunStore, monkeypatch) -> None:
    from dataclasses import replace

    questions = stored.questions("r1")
    read = stored.questions
    monkeypatch.setattr(
        stored, "questions", lambda run_id: [replace(questions[0], text="Else?")] if run_id == "r2" else read(run_id)
    )
    record = replace(stored.run("r1"), spec=replace(stored.run("r1").spec, run_id="r2"))
    stored.create_run(record, questions)
    with pytest.raises(Conflict, match="differs between the runs"):
        load_columns(stored, [ColumnSource("r1", "s3"), ColumnSource("r2", "s3", "other")])
