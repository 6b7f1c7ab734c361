"""The written report is complete, self-contained and free of markup from its data."""

import json
import re
from pathlib import Path

import pytest

from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest, NotFound
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import MethodSpec, RunRecord, RunSpec
from services.evaluator.reports.charts import Series, pick_series, read_training_metrics
from services.evaluator.reports.pages import ExtraSection, format_number, format_p_value
from services.evaluator.reports.report_columns import ColumnSource, list_columns
from services.evaluator.reports.report_writer import ReportRequest, write_report
from services.evaluator.store.run_store import RunStore


@pytest.fixture
def metrics_file(tmp_path: Path) -> Path:
    rows = [{"step": step, "values": {"rollouts/reward_mean": step / 10, "loss": None}} for step in range(1, 6)]
    rows.append({"step": 5, "values": {"rollouts/reward_mean": 0.9}})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def page(stored: RunStore, tmp_path: Path, metrics_file: Path) -> str:
    """The HTML page of a report with every optional part, and with markup in its texts."""
    request = ReportRequest(
        list_columns(stored, "r1"),
        title="Title <script>alert(1)</script>",
        compare=("rag", "s3"),
        training_metrics=metrics_file,
        sections=[ExtraSection("Machine", ["Two <cores>."], ["Phase", "Seconds"], [["training", "118"]])],
        labels={"s3": {"accuracy": "s3", "sampled": "none"}},
        seconds=130.0,
        phases={"training": 118.0},
    )
    write_report(stored, request, tmp_path / "out")
    return (tmp_path / "out" / "report.html").read_text()


def test_the_page_loads_nothing_from_anywhere(page: str) -> None:
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:,)""", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_texts_are_escaped(page: str) -> None:
    assert "<script>alert" not in page
    assert "Two &lt;cores&gt;." in page
    assert "&lt;b&gt;Noise&lt;/b&gt;" in page


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:xlink:href="|url\()#(c\d+-[^")]+)', page))
    assert used <= set(ids)


def test_the_page_has_every_section(page: str) -> None:
    for part in ("methods", "cost", "differences", "by-1", "controls", "training", "example", "extra-1", "failures"):
        assert f'<section id="{part}">' in page
    assert "more &amp; more" in page


def test_the_summary_has_the_names_of_the_caller(page: str, tmp_path: Path) -> None:
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["methods"] == {"s3": {"accuracy": 1.0, "sampled": None}}
    assert (summary["seconds"], summary["phases"]) == (130.0, {"training": 118.0})
    assert summary["curve"][-1] == {"step": 5.0, "rollouts/reward_mean": 0.9}


def test_the_json_report_holds_no_nan(page: str, tmp_path: Path) -> None:
    report = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["methods"]["s3"]["metrics"]["accuracy"]["mean"] == 1.0
    assert report["methods"]["s3"]["coverage"] == 0.75
    assert report["common_questions"] == 3
    assert report["controls"]["closed_book"]["mean"] == 0.0


def test_a_run_without_any_answer_still_gives_a_report(stored: RunStore, tmp_path: Path) -> None:
    from dataclasses import replace

    record = replace(stored.run("r1"), spec=replace(stored.run("r1").spec, run_id="empty"))
    stored.create_run(record, stored.questions("r1"))
    write_report(stored, ReportRequest([ColumnSource("empty", "s3"), ColumnSource("empty", "rag")]), tmp_path)
    assert "0 of 4" in (tmp_path / "report.html").read_text()


def test_training_metrics_are_read_flat_or_nested_and_bad_lines_are_named(tmp_path: Path, metrics_file: Path) -> None:
    series = read_training_metrics(metrics_file)
    assert [entry.name for entry in series] == ["rollouts/reward_mean"]
    assert series[0].values[-1] == 0.9  # the repeated step of a resumed run
    assert pick_series(series, ["reward_mean", "rollouts/reward_mean"]) == series
    path = tmp_path / "bad.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"loss": 3}\n')
    with pytest.raises(InvalidRequest, match="line 2"):
        read_training_metrics(path)
    path.write_text('{"step": 1}\n[]\n')
    with pytest.raises(InvalidRequest, match="line 2"):
        read_training_metrics(path)
    with pytest.raises(NotFound):
        read_training_metrics(tmp_path / "none.jsonl")


@pytest.mark.parametrize("beginning", [b"", b'{"step": 2, "lo', b'{"step": 2, "loss": 1.0}', b'{"step": 2, "\xc3'])
def test_the_curves_of_a_running_training_end_with_its_last_complete_step(tmp_path: Path, beginning: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 3.0}\n{"step": 1, "loss": 2.0}\n' + beginning)
    assert read_training_metrics(path) == [Series("loss", (0.0, 1.0), (3.0, 2.0))]


def test_an_event_of_a_run_is_no_point_of_its_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"event": "rollback", "step": 1, "loss": 9.0}\n')
    assert read_training_metrics(path) == [Series("loss", (1.0,), (2.0,))]


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 100_000])
def test_a_metrics_line_that_is_not_json_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 3.0}\n' + line + b'\n{"step": 1, "loss": 2.0}\n')
    with pytest.raises(InvalidRequest, match=r"metrics\.jsonl, line 2"):
        read_training_metrics(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.0123, "0.0123"), (0.5, "0.50"), (12.34, "12.3"), (1234.5, "1,234"), (float("nan"), "–")],
)
def test_numbers_are_shortened(value: float, text: str) -> None:
    assert format_number(value) == text


def test_p_values_are_not_more_exact_than_the_test() -> None:
    assert format_p_value(0.00004) == "< 0.001"
    assert format_p_value(0.0456) == "0.046"


def test_a_report_of_any_texts_and_keys_stays_small(store: RunStore, tmp_path: Path) -> None:
    spec = RunSpec("r1", "q.jsonl", (MethodSpec("rag"), MethodSpec("s3")))
    questions = [
        Question(f"q{n}", "w" * 500_000, ("g" * 500_000,), metadata={f"key{k}": str(n % 2) for k in range(300)})
        for n in range(4)
    ]
    store.create_run(RunRecord(spec, spec.methods, "f" * 64, 4), questions)
    for question in questions:
        for label in ("rag", "s3"):
            store.append("r1", Episode(label, question.id, Answer("a" * 500_000), Verdict(True, "", ""))).result()
    write_report(store, ReportRequest(list_columns(store, "r1")), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
