"""Tests that each service imports only distributions that its extra installs."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Parts that need a further extra.
OPTIONAL_PARTS = {
    "services/retriever/encoders": "encoders",
    "services/retriever/indexes/vectors/gpu_exact.py": "encoders",
    "services/retriever/indexes/vectors/group_maxima.py": "encoders",
    "services/retriever/indexes/vectors/maxima_kernel.py": "encoders",
    "searchrl/platform/telemetry/tracing.py": "tracing",
    "searchrl/platform/telemetry/trace_export.py": "tracing",
    "searchrl/jobs/cluster.py": "submit",
    "searchrl/jobs/api_errors.py": "submit",
    "searchrl/storage/sources": "storage",
    "services/trainer/learner/adapters.py": "qlora",
    "searchrl/statistics": "evaluator",  # and the trainer, which has the same numpy
    "services/trainer/trackers/wandb.py": "wandb",
    # Trainer and evaluator install pyarrow; elsewhere a parquet file is refused with a message.
    "searchrl/datasets/table_records.py": "evaluator",
}
# Runs in vLLM's environment, which has these modules (the last one stands beside it) and none of ours.
IN_VLLM = ROOT / "services" / "trainer" / "engines" / "vllm" / "plugin"
MODULES_IN_VLLM = ("vllm", "torch", "safetensors", "shared_buffers")


def normalized(requirement: str) -> str:
    name = re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


DISTRIBUTIONS = packages_distributions()
BASE = {normalized(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {
    extra: {normalized(requirement) for requirement in requirements}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}
# Distributions that code imports directly and that a required distribution always installs.
BROUGHT_ALONG = {
    "safetensors": "sentence-transformers",
    "starlette": "fastapi",
    "markupsafe": "jinja2",
    "torch": "sentence-transformers",
    "transformers": "sentence-transformers",
    "triton": "sentence-transformers",  # by torch for GPUs; the module is imported beside one only
    "opentelemetry-api": "opentelemetry-sdk",
    "httpx2": "huggingface-hub",
    "certifi": "httpx",
    "urllib3": "kubernetes",
    "yarl": "aiohttp",
}


def third_party_imports(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            if path.is_relative_to(IN_VLLM):
                names = [name for name in names if name.partition(".")[0] not in MODULES_IN_VLLM]
            for name in names:
                top = name.partition(".")[0]
                # type checkers provide _typeshed; it is imported for them alone
                if top not in sys.stdlib_module_names and top not in ("searchrl", "services", "_typeshed"):
                    yield path.relative_to(ROOT), name


def distributions_of(module: str) -> set[str]:
    """Return the installed distributions that provide a module; namespace packages have several."""
    top = module.partition(".")[0]
    return {normalized(name) for name in DISTRIBUTIONS.get(top, [top])}


def covered(module: str, available: set[str]) -> bool:
    names = distributions_of(module)
    return bool(names & available) or any(BROUGHT_ALONG.get(name) in available for name in names)


def extra_of(path: Path, service: str | None = None) -> set[str]:
    extras = set(EXTRAS[service]) if service else set()
    for folder, extra in OPTIONAL_PARTS.items():
        if path.is_relative_to(folder):
            extras |= EXTRAS[extra]
    return extras


@pytest.mark.parametrize("service", ["retriever", "generator", "trainer", "evaluator", "policy_server"])
def test_a_service_imports_only_what_its_extra_installs(service: str) -> None:
    extra = "trainer" if service == "policy_server" else service  # it runs in the trainer's image
    missing = {
        f"{path} imports {module}"
        for path, module in third_party_imports(ROOT / "services" / service)
        if not covered(module, BASE | extra_of(path, extra))
    }
    assert missing == set()


def test_the_shared_package_imports_only_the_base_dependencies() -> None:
    missing = {
        f"{path} imports {module}"
        for path, module in third_party_imports(ROOT / "searchrl")
        if not covered(module, BASE | extra_of(path))
    }
    assert missing == set()


@pytest.mark.parametrize("service", ["retriever", "generator", "trainer", "evaluator"])
def test_no_extra_requires_what_nobody_imports(service: str) -> None:
    used: set[str] = set()
    shared = (ROOT / folder for folder, extra in OPTIONAL_PARTS.items() if extra == service)
    for folder in (ROOT / "services" / service, *shared):
        for _, module in third_party_imports(folder):
            used |= distributions_of(module)
    needed_at_run_time = {"tensorboard", "ray", "matplotlib", "pyarrow"}
    assert EXTRAS[service] - used - needed_at_run_time == set()
