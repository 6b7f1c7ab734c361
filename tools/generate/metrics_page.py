"""Generates docs/metrics.md from the services' metric objects."""

from tools.generate.service_metrics import BUILDERS, metrics_table

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
    sections = [f"## {TITLES[owner]}\n\n{metrics_table(owner)}\n" for owner in BUILDERS]
    return "\n".join([HEAD, *sections])
