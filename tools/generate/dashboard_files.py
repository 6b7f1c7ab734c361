"""Generates Grafana's dashboards from the modules of ``tools/generate/dashboards``."""

import json

from tools.generate.dashboards import generator, jobs, overview, retriever, training

FOLDER = "deploy/helm/searchrl/dashboards"
DASHBOARDS = {"overview": overview, "retriever": retriever, "generator": generator, "training": training, "jobs": jobs}


def files() -> dict[str, str]:
    """Return the text of each dashboard by its path in the repository."""
    return {f"{FOLDER}/{name}.json": json.dumps(module.build(), indent=1) + "\n" for name, module in DASHBOARDS.items()}
