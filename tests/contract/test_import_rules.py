"""Tests the import rules, the size limits of modules and functions, and the layout of services."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path.relative_to(ROOT)
    for folder in ("searchrl", "services")
    for path in (ROOT / folder).rglob("*.py")
    if "contracts" not in path.parts
)
# The policy server serves an engine of the trainer over HTTP; it has no calls and no core object of its own.
SERVICES = sorted(
    path.name
    for path in (ROOT / "services").iterdir()
    if (path / "__init__.py").is_file() and path.name != "policy_server"
)
LINE_LIMIT = 400  # of a module: more belongs to several modules
FUNCTION_LIMIT = 60  # lines; a straight recipe of this length may stay one function
ROOT_MODULES_LIMIT = 15  # of a service: its parts move into folders before the list gets too long to scan
STANDARD_FILES = {
    "README.md", "__init__.py", "__main__.py", "settings.py", "wiring.py", "grpc_servicer.py", "http_routes.py",
    "metrics.py",
}  # fmt: skip
CORE_FORBIDS = ("grpc", "fastapi", "pydantic_settings")

# Broad excepts are allowed only at boundaries where any exception can arrive and none may escape. Each one is listed
# here with its reason.
BROAD_EXCEPTS: dict[str, str] = {
    "searchrl/tokenization/model_tokenizer.py": "the tokenizers library raises plain Exception for a broken file",
    "services/evaluator/runs/run_executor.py": "an evaluation run is a task of its own: its failure becomes its state",
    "services/evaluator/runs/episode_runner.py": "a failed episode is data and must not end the run",
    "services/generator/engines/engine_watch.py": "a probe that breaks must not end the probing",
    "services/trainer/engines/vllm/replica.py": "a failed update, whatever it raises, takes the server out of rotation",
    "services/trainer/engines/vllm/collective_transfer.py": "what a collective raises belongs to its caller",
    "services/trainer/engines/torch_engine.py": "the engine's thread hands failures to the callers and lives on",
    "services/trainer/trackers/tracker_thread.py": "a tracker whose library fails must not end the run",
    "services/trainer/cluster/placement.py": "Ray raises plain Exception where a node does not start in time",
    "searchrl/platform/server/grpc_interceptor.py": "every failure of a gRPC call gets its status by the error table",
    "searchrl/platform/server/http_middleware.py": "every failure of an HTTP request gets its status by the table",
    "searchrl/platform/owner_thread.py": "whatever a job raises fails that job, not the thread of others",
    "services/retriever/serving/active_index.py": "a generation that cannot be opened must not end the follower",
    "services/retriever/serving/query_batcher.py": "one query that cannot be ranked must not stop the owner thread",
}


def source(module: Path) -> str:
    return (ROOT / module).read_text()


def imported_modules(module: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def test_the_import_contracts_of_pyproject_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_or_function_is_too_long(module: Path) -> None:
    text = source(module)
    lines = text.count("\n")
    assert lines < LINE_LIMIT, f"{module} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LIMIT, f"{module}: {node.name} has {length} lines"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_docstring_no_notes_and_no_print(module: Path) -> None:
    tree = ast.parse(source(module))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", source(module)), f"{module} has a note such as TODO"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), f"{module} prints"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_package_file_holds_its_description_and_at_most_a_registry(module: Path) -> None:
    if module.name != "__init__.py":
        return
    statements = ast.parse(source(module)).body
    assigned = [node for node in statements if isinstance(node, ast.Assign | ast.AnnAssign)]
    allowed = (ast.Expr, ast.Assign, ast.AnnAssign, *((ast.Import, ast.ImportFrom) if assigned else ()))
    assert all(isinstance(node, allowed) for node in statements), f"{module} holds more than docstring and registry"


def is_broad(handler: ast.ExceptHandler) -> bool:
    if isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None:
        return False  # cleans up and raises the exception again
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds
    )


def test_broad_excepts_are_only_the_listed_ones() -> None:
    found = {
        str(module)
        for module in MODULES
        for node in ast.walk(ast.parse(source(module)))
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    }
    assert found - BROAD_EXCEPTS.keys() == set(), "catch what is expected, or name the border in BROAD_EXCEPTS"
    assert BROAD_EXCEPTS.keys() - found == set(), "no broad except there any more: take it off BROAD_EXCEPTS"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_standard_files_and_a_small_root(service: str) -> None:
    folder = ROOT / "services" / service
    assert {name for name in STANDARD_FILES if not (folder / name).is_file()} == set()
    assert list(folder.glob("*_service.py")), "the core object is missing"
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= ROOT_MODULES_LIMIT, sorted(path.name for path in modules)


@pytest.mark.parametrize("service", SERVICES)
def test_the_core_of_a_service_imports_no_transport_and_no_settings(service: str) -> None:
    for path in (ROOT / "services" / service).glob("*_service.py"):
        module = path.relative_to(ROOT)
        for name in imported_modules(module):
            assert name.partition(".")[0] not in CORE_FORBIDS, f"{module} imports {name}"
            assert name != f"services.{service}.settings", f"{module} imports its settings"


@pytest.mark.parametrize("service", SERVICES)
def test_only_transports_and_clients_read_messages(service: str) -> None:
    readers = {"grpc_servicer.py", "http_routes.py", "wiring.py"}
    for path in (ROOT / "services" / service).rglob("*.py"):
        module = path.relative_to(ROOT)
        is_adapter_of_a_client = path.name.startswith("remote_")
        if path.name not in readers and not is_adapter_of_a_client:
            names = imported_modules(module)
            assert not any(name.startswith("searchrl.contracts") for name in names), f"{module} reads messages"


def test_folders_of_no_package_hold_no_init_file() -> None:
    for folder in ("proto", "docker", "deploy", "tests"):
        assert list((ROOT / folder).rglob("__init__.py")) == []
