"""Generates docs/metrics.md from the services' metric objects."""

from tools.generate.service_metrics import BUILDERS, own_metrics

HEAD = """# Metrics

Metrics that the services export on `/metrics` of their HTTP port, in addition to Python's own
`process_*` and `python_*`. `make generate` writes this page from the code. Counters are scraped
with `_total`, histograms with `_bucket`, `_sum` and `_count`.
"""
TITLES = {
    "every service": "Every service",
    "retriever": "Retriever",
    "generator": "Generator",
    "evaluator": "Evaluator",
    "trainer": "Trainer",
    "policy-server": "Policy server (searcher engine of tiny models)",
}


def files() -> dict[str, str]:
    """Return the text of the page by its path in the repository."""
    return {"docs/metrics.md": page()}


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
                [
                    f"## {TITLES[owner]}",
                    "",
                    "| metric | type | labels | meaning |",
                    "|---|---|---|---|",
                    *sorted(rows),
                    "",
                ]
            )
        )
    return "\n".join(parts)
