"""Tests the report in a browser: it opens without an error, its tables sort, and it fits the window."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from searchrl.domain.answer import Answer, SearchStep, Usage, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EvaluationState, MethodSpec, RunRecord, RunSpec
from services.evaluator.reports.pages import ExtraSection, render_runs
from services.evaluator.reports.report_columns import list_columns
from services.evaluator.reports.report_writer import ReportRequest, write_report
from services.evaluator.runs.run_progress import summarize_stored
from services.evaluator.store.run_store import RunStore, stamp_created

RIGHT_OF_TWENTY = {"rag": 6, "s3 untrained": 9, "s3": 17, "direct": 1, "oracle": 19, "random_retriever": 2}


@pytest.fixture
def store(tmp_path: Path):
    """A store with one run of twenty questions; each method is right on the first ones, as many as stated above."""
    store = RunStore.open(tmp_path / "results.sqlite")
    methods = tuple(MethodSpec("s3" if name.startswith("s3") else name, label=name) for name in RIGHT_OF_TWENTY)
    spec = RunSpec("r1", "q.jsonl", methods, concurrency=8)
    questions = [
        Question(f"q{n}", f"Who <leads> {n}?", ("Ann",), metadata={"hops": str(1 + n % 3)}, gold_passage_ids=(f"p{n}",))
        for n in range(20)
    ]
    store.create_run(stamp_created(RunRecord(spec, methods, "a" * 64, 20, index_generation="g-1")), questions)
    for label, right in RIGHT_OF_TWENTY.items():
        for number, question in enumerate(questions):
            passage = Passage(f"p{number}", f'Title "{number}" & more', "Some text. " * 60)
            correct = number < right
            step = SearchStep(0, question.text, (passage.id,), (passage.id,) if correct else ())
            answer = Answer(
                "Ann" if correct else "北京",
                documents=(passage.id,),
                usage=Usage(context_tokens=number + 40),
                steps=(step, SearchStep(1, "next", (passage.id,))),
                searches=1,
                seconds=0.1 + number / 100,
            )
            scores = dict.fromkeys(("exact_match", "f1", "gold_recall"), float(correct))
            store.append("r1", Episode(label, question.id, answer, Verdict(correct, "", "j1"), **scores), [passage])
    store.append("r1", Episode("s3", "q19", failure="unavailable", error="gone"))
    store.set_missing_gold("r1", 20, ["p19"])
    store.close_run(replace(store.run("r1"), state=EvaluationState.FINISHED))
    yield store
    store.close()


@pytest.fixture
def report(store: RunStore, tmp_path: Path) -> Path:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"step": {step}, "reward_mean": {step / 20}}}\n' for step in range(20)))
    request = ReportRequest(
        list_columns(store, "r1"),
        title="Report <of> & all",
        compare=("s3 untrained", "s3"),
        training_metrics=metrics,
        sections=[ExtraSection("Machine", ["Two cores."], ["Phase", "Seconds"], [["train", "118"], ["test", "9"]])],
    )
    write_report(store, request, tmp_path / "out")
    return tmp_path / "out" / "report.html"


def with_script(page: Path, script: str) -> str:
    """Write a copy of the page that runs ``script`` after loading, and return its address."""
    changed = page.with_name("changed.html")
    changed.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return changed.as_uri()


def test_the_report_opens_without_a_word_on_the_console(open_page, report: Path) -> None:
    page = open_page(report.as_uri())
    assert page.console == []
    assert page.dom.count('role="img"') >= 4
    assert "Report &lt;of&gt; &amp; all" in page.dom


def test_a_script_error_would_be_seen(open_page, report: Path) -> None:
    assert any("boom" in line for line in open_page(with_script(report, "throw new Error('boom')")).console)


def test_a_click_sorts_by_value_and_a_second_click_the_other_way(open_page, report: Path) -> None:
    script = """
        const table = document.querySelector('#methods table');
        const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join('|');
        const button = table.tHead.rows[0].cells[1].querySelector('button');
        button.click(); const down = names();
        button.click(); const up = names();
        document.body.dataset.down = down; document.body.dataset.up = up;
        document.body.dataset.sort = table.tHead.rows[0].cells[1].getAttribute('aria-sort');
    """
    dom = open_page(with_script(report, script)).dom
    body = re.search(r"<body[^>]*>", dom)
    assert body is not None
    # 19, 17 of 19 answered (.89), 9, 6, 2, 1 of 20
    best_first = ["oracle", "s3", "s3 untrained", "rag", "random_retriever", "direct"]
    assert f'data-down="{"|".join(best_first)}"' in body.group()
    assert f'data-up="{"|".join(reversed(best_first))}"' in body.group()
    assert 'data-sort="ascending"' in body.group()


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_but_tables_in_their_boxes_is_wider_than_the_window(open_page, report: Path, width: int) -> None:
    script = """
        const page = document.documentElement;
        document.body.dataset.wide = String(page.scrollWidth > page.clientWidth);
    """
    assert 'data-wide="false"' in open_page(with_script(report, script), width=width).dom


def test_headings_controls_and_charts_have_names(open_page, report: Path) -> None:
    script = """
        const nameless = 'svg[role=img]:not([aria-label]), th:not([scope]), button:empty';
        const unnamed = [...document.querySelectorAll(nameless)];
        const levels = [...document.querySelectorAll('h1, h2, h3')].map((heading) => Number(heading.tagName[1]));
        const jumps = levels.some((level, at) => at > 0 && level > levels[at - 1] + 1);
        const broken = [...document.querySelectorAll('nav a')].filter((link) => !document.querySelector(link.hash));
        document.body.dataset.problems = `${unnamed.length} ${jumps} ${broken.length}`;
    """
    assert 'data-problems="0 false 0"' in open_page(with_script(report, script)).dom


def test_the_page_of_runs_opens_without_an_error(open_page, store: RunStore, tmp_path: Path) -> None:
    path = tmp_path / "runs.html"
    path.write_text(render_runs([summarize_stored(store.run("r1"), store.episodes("r1"))]))
    page = open_page(path.as_uri())
    assert page.console == []
    assert 'href="runs/r1"' in page.dom


def test_a_screenshot_can_be_taken_in_both_looks(open_page, report: Path, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    open_page(report.as_uri(), screenshot=picture)
    assert picture.stat().st_size > 50_000
