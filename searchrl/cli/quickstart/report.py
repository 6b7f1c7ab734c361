"""Composes the requests for the quickstart's two reports and their summaries."""

from collections.abc import Mapping
from pathlib import Path

from searchrl.cli.quickstart.plan import QuickstartPlan

Summary = dict[str, dict[str, float]]

# Summary: method -> {field of the summary: column of the report}.
LABELS = {
    "direct": {"accuracy": "direct"},
    "rag": {"accuracy": "rag"},
    "title_heuristic": {"accuracy": "title_heuristic"},
    "s3-untrained": {"accuracy": "s3 untrained", "sampled": "s3 untrained, sampled"},
    "s3": {"accuracy": "s3 trained", "sampled": "s3 trained, sampled"},
}
# Columns of the report: (evaluation run, its label there, name in the report).
COLUMNS = (
    ("before", "direct", "direct"),
    ("before", "rag", "rag"),
    ("before", "title_heuristic", "title_heuristic"),
    ("before", "oracle", "oracle"),
    ("before", "random_retriever", "random_retriever"),
    ("before", "s3-untrained", "s3 untrained"),
    ("before", "s3-untrained-sampled", "s3 untrained, sampled"),
    ("after", "s3", "s3 trained"),
    ("after", "s3-sampled", "s3 trained, sampled"),
)
LARGE_LABELS = {"rag": {"larger_world": "rag"}, "s3": {"larger_world": "s3", "larger_world_sampled": "s3, sampled"}}
LARGE_COLUMNS = (("larger", "rag", "rag"), ("larger", "s3", "s3"), ("larger", "s3-sampled", "s3, sampled"))


def main_request(
    folder: Path, plan: QuickstartPlan, phases: Mapping[str, float], seconds: float, large: Summary
) -> dict[str, object]:
    """Compose the request of the report on the unseen worlds; ``large`` is the summary of ``large_request``."""
    return {
        **_request(folder, folder / "report", COLUMNS, f"SearchRL quickstart, seed {plan.seed}"),
        "compare": ["s3 untrained", "s3 trained"],
        "training_metrics": str(folder / "training" / "metrics.jsonl"),
        "labels": LABELS,
        "seconds": round(seconds, 1),
        "phases": dict(phases),
        "sections": [_large_world(plan, large), _about(plan)],
    }


def large_request(folder: Path, plan: QuickstartPlan) -> dict[str, object]:
    """Compose the request of the report on the larger world, separate because its questions are different."""
    title = f"SearchRL quickstart, seed {plan.seed}: the larger unseen world"
    return {
        **_request(folder, folder / "report" / "larger_world", LARGE_COLUMNS, title),
        "labels": LARGE_LABELS,
    }


def _request(folder: Path, output: Path, columns: tuple[tuple[str, str, str], ...], title: str) -> dict[str, object]:
    return {
        "store": str(folder / "evaluator" / "results.sqlite"),
        "output": str(output),
        "title": title,
        "columns": [{"run_id": run, "label": label, "name": name} for run, label, name in columns],
        "baseline": "rag",
    }


def _large_world(plan: QuickstartPlan, large: Summary) -> dict[str, object]:
    numbers = {name: fields for name, fields in large.items()}
    rows = [
        ["naive RAG", f"{numbers['rag']['larger_world']:.2f}"],
        ["s3 trained, greedy", f"{numbers['s3']['larger_world']:.2f}"],
        ["s3 trained, sampled", f"{numbers['s3']['larger_world_sampled']:.2f}"],
    ]
    return {
        "title": "One larger unseen world",
        "paragraphs": [
            f"{plan.large_questions} questions about a world four times as large, whose names occur in no other world. "
            "They show whether the skill carries over to new names and a larger corpus. "
            "The full report is larger_world/report.html, beside this one."
        ],
        "header": ["method", "accuracy"],
        "rows": rows,
    }


def _about(plan: QuickstartPlan) -> dict[str, object]:
    return {
        "title": "Setup",
        "paragraphs": [
            f"A searcher of 0.7 million parameters learned in {plan.train_worlds} small synthetic worlds by GRPO: "
            f"{plan.steps} steps of 24 questions with 8 rollouts each. The reward is 1 if the frozen reader answers "
            "correctly, minus 5 % for each document that the reader is given; failures are not charged.",
            "Questions chain one to three facts. The reader answers only from facts stated in the first five documents "
            "it is given, so an answer is correct only if the searcher gathered the complete chain.",
            f"The unseen test worlds ({plan.test_questions} questions) have other facts than the training worlds.",
        ],
    }
