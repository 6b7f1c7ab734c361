"""Generates the manifests of ``deploy/jobs`` from the catalog of jobs."""

from searchrl.jobs.catalog import CATALOG


def files() -> dict[str, str]:
    """Return the text of each manifest by its path in the repository."""
    return {f"deploy/jobs/{name}": entry.text for name, entry in CATALOG.items()}
