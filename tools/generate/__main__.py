"""Writes every generated file of the repository that is out of date: ``make generate``."""

import sys
from pathlib import Path

from tools.generate import (
    chart_readme,
    chart_schema,
    dashboard_files,
    job_manifests,
    metrics_page,
    service_readmes,
    sizing_tables,
)

ROOT = Path(__file__).resolve().parents[2]
GENERATORS = (
    chart_schema, chart_readme, dashboard_files, job_manifests, metrics_page, service_readmes, sizing_tables,
)  # fmt: skip


def stale_files() -> dict[Path, str]:
    """Return the new text of each generated file that differs from what its generator writes."""
    # Every text is built before any file is written: a generator that fails leaves the repository as it was.
    generated = {ROOT / name: text for generator in GENERATORS for name, text in generator.files().items()}
    return {path: text for path, text in generated.items() if not path.is_file() or path.read_text() != text}


def main() -> int:
    for path, text in stale_files().items():
        path.write_text(text)
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
