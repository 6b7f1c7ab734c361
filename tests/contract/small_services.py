"""Starts all four services of a small world as real processes, for tests that call them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import searchrl
from searchrl.local.index_build import IndexRequest
from searchrl.local.local_services import Inputs, LocalServices
from searchrl.local.service_plan import ServicePlan
from searchrl.small_world.files import SmallWorldFiles, write_small_world
from tests.contract.harness import BothTransports

ADMIN_KEY = "a-secret"
KEYS = f"- {{name: operator, key: {ADMIN_KEY}, scope: admin}}\n"
BEARER = {"authorization": f"Bearer {ADMIN_KEY}"}
WARM_START = Path(searchrl.__file__).parent / "small_world" / "warm_start"


@dataclass(frozen=True)
class Running:
    """The running services, and the files that they serve."""

    targets: Mapping[str, BothTransports]
    files: SmallWorldFiles
    generation: str


@contextmanager
def small_services(folder: Path) -> Iterator[Running]:
    """Start the services until the block ends; the trainer trains until it is stopped."""
    files = write_small_world(folder / "world", train_worlds=1, test_worlds=1, questions_per_world=4, large_questions=4)
    (folder / "keys.yaml").write_text(KEYS)
    inputs = Inputs(index=IndexRequest(files.corpus), keys_file=folder / "keys.yaml")
    plan = ServicePlan(folder / "up", {"trainer": training_run(files)})
    services = LocalServices(folder / "up", inputs, plan)
    try:
        services.start()
        targets = {
            name: BothTransports(record.grpc, f"http://{record.http}", ADMIN_KEY)
            for name, record in services.records().items()
        }
        indexes = httpx.get(f"{targets['retriever'].http_url}/v1/admin/indexes", headers=BEARER, trust_env=False)
        yield Running(targets, files, indexes.json()["indexes"][0]["generation"])
    finally:
        services.close()


def training_run(files: SmallWorldFiles) -> dict[str, Any]:
    """Return the settings of a run with so many steps that it continues until it is stopped."""
    return {
        "preset": "small_world",
        "model": str(WARM_START),
        "questions": str(files.train),
        "steps": 10_000,
        "rollouts": {"groups_per_step": 4, "group_size": 4},
    }
