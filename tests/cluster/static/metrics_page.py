"""Write docs/metrics.md from the services' metric objects: ``python -m tests.cluster.static.metrics_page``."""

from tests.cluster.static.monitoring_registry import BUILDERS, ROOT, own_metrics

PAGE = ROOT / "docs" / "metrics.md"
HEAD = """# Metrics
Everything that the services export on `/metrics` of their HTTP port, beside Python's own `process_*` and `python_*`.
This page is written from the code by `python -m tests.cluster.static.metrics_page`; a test compares. Counters are
scraped with `_total`, histograms with `_bucket`, `_sum` and `_count`.
"""
TITLES = {
    "every service": "Every service",
    "retriever": "Retriever",
    "generator": "Generator",
    "evaluator": "Evaluator",
    "trainer": "Trainer",
    "policy-server": "Policy server (searcher engine of tiny models)",
}


def page() -> str:
    """The complete text of the page."""
    parts = [HEAD]
    for owner in BUILDERS:
        rows = [
            f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} "
            f"| {', '.join(family.labels)} | {family.text} |"
            for family in own_metrics().values()
            if family.owner == owner
        ]
        parts.append(
            "\n".join(
                [f"## {TITLES[owner]}", "| metric | type | labels | meaning |", "|---|---|---|---|", *sorted(rows), ""]
            )
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
