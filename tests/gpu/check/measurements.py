"""Measures updates of the learner, by time and by memory, and the encoder's throughput."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from services.retriever.indexes.vectors.base import ExactSettings
from services.retriever.indexes.vectors.gpu_exact import GpuExactIndex
from services.trainer.learner.device import LearnerSettings
from services.trainer.preflight.sizes import count_parameters, estimate_sizes
from services.trainer.settings import RunConfig
from tests.bench.retriever.encoder_throughput import COLUMNS as ENCODER_COLUMNS
from tests.bench.retriever.encoder_throughput import measure as measure_encoder
from tests.bench.retriever.gpu_search import (
    BATCH_COLUMNS,
    CLIENT_COLUMNS,
    make_vectors,
    measure_batches,
    measure_clients,
)
from tests.bench.trainer.learner_update import matrix_tflops, measure, write_shape
from tests.fakes.train_rows import random_rows
from tests.gpu.check.isolation import Finding, Table

# Dense bfloat16 products of tensor cores, in 10^12 operations per second: taken from NVIDIA's data sheets as cited by
# others; not checked.
DATASHEET_TFLOPS = {"NVIDIA H200": 989.0, "NVIDIA H100 80GB HBM3": 989.0, "NVIDIA A100-SXM4-80GB": 312.0}
# A plan is wrong if a run needs much more than planned, because it then runs out of memory, or much less, because it is
# then refused where it fits. The allocator's rounding and the workspaces of cuBLAS are a few percent.
MOST_OF_ESTIMATE, LEAST_OF_ESTIMATE = 1.1, 0.6
UPDATE_COLUMNS = (
    "shape", "checkpointing", "seconds", "tokens/s", "TFLOP/s", "MFU", "peak GiB", "estimated GiB", "of estimate",
)  # fmt: skip
NOT_MEASURED = "not measured"
Row = Mapping[str, object]


def measure_updates(shape: str, device: str) -> Finding:
    """Measure an update without and with activation checkpointing; check the plan's memory against the allocator's."""
    is_small = device == "cpu"
    peak, source = (0.0, "") if is_small else find_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(Path(folder), shape, device)
        rows = [measure_update(model, shape, device, checkpointing, peak) for checkpointing in (False, True)]
    title = "Updates in bfloat16 with float32 weights"
    if not is_small:
        title += f", 32 rollouts of 512 to 1,536 tokens, 8,192 tokens at once. MFU: of {peak:,.0f} TFLOP/s, {source}"
    table = Table(title, UPDATE_COLUMNS, rows)
    shares = [row["of estimate"] for row in rows]
    if is_small:
        return Finding(True, "updates ran; nothing is measured on a CPU", [table])
    wrong = [share for share in shares if not is_within_estimate(share)]
    text = f"{' and '.join(f'{share:.2f}' for share in shares)} of the estimated memory"
    return Finding(not wrong, text, [table])


def is_within_estimate(share: object) -> bool:
    """Whether the measured share of the estimate is close enough to plan with."""
    return isinstance(share, float) and LEAST_OF_ESTIMATE <= share <= MOST_OF_ESTIMATE


def measure_update(model: Path, shape: str, device: str, checkpointing: bool, peak: float) -> Row:
    """Measure the fastest way of updating that the documentation recommends, padded, in one setting."""
    is_small = device == "cpu"
    settings = LearnerSettings(
        device=device, dtype="bfloat16", token_budget=128 if is_small else 8192, gradient_checkpointing=checkpointing
    )
    rollouts = random_rows(2, longest=16) if is_small else random_rows(32, shortest=512, longest=1536)
    measured = dict(measure(model, rollouts, settings, repeats=1 if is_small else 3))
    estimated = estimate_gpu_bytes(model, settings) / 2**30
    if is_small:
        measured |= {"MFU": NOT_MEASURED, "peak GiB": NOT_MEASURED, "of estimate": NOT_MEASURED}
    else:
        measured["MFU"] = _as_float(measured["TFLOP/s"]) / peak
        measured["of estimate"] = _as_float(measured["peak GiB"]) / estimated
    return {"shape": shape, "checkpointing": "on" if checkpointing else "off", "estimated GiB": estimated, **measured}


def estimate_gpu_bytes(model: Path, settings: LearnerSettings) -> int:
    """Bytes that a training run with these settings plans for its GPU."""
    values = {"model": model, "questions": "none", "output": "none", "services": {"generator": "none"}}
    config = RunConfig.model_validate({**values, "learner": settings.model_dump()})
    return estimate_sizes(config, count_parameters(model), context_tokens=512).learner


def find_peak(device: str) -> tuple[float, str]:
    """The peak rate of a GPU in 10^12 operations per second, and where it comes from."""
    name = torch.cuda.get_device_name(device)
    if name in DATASHEET_TFLOPS:
        return DATASHEET_TFLOPS[name], f"the datasheet's for {name}"
    return matrix_tflops(device, "bfloat16", threads=1), f"one large matrix product on {name}"


def measure_encoding(device: str) -> Finding:
    """Measure the encoder's throughput in BERT-base's shape."""
    shape, count, words = ("tiny", 64, 20) if device == "cpu" else ("bert-base", 4096, 100)
    row = measure_encoder(shape, device, count, words, repeats=1 if device == "cpu" else 3)
    text = f"{_as_float(row['passages/s']):,.0f} passages/s"
    return Finding(True, text, [Table("Encoding in float32, batches of 64", ENCODER_COLUMNS, [row])])


def measure_search(device: str) -> Finding:
    """Measure exact search over 21 million vectors of 768 dimensions, or as many as fit."""
    is_small = device == "cpu"
    rows = 2000
    if not is_small:
        free, _ = torch.cuda.mem_get_info()
        rows = min(21_000_000, int(free * 0.9) // (768 * 2))
    started = time.monotonic()
    index = GpuExactIndex(make_vectors(rows, 32 if is_small else 768), ExactSettings(device=device))
    loaded = time.monotonic() - started
    batches = measure_batches(index, (1, 8, 32, 64, 128), 1 if is_small else 10)
    clients = measure_clients(index, (1, 32, 64, 128), 0.01 if is_small else 2.0)
    title = f"Exact search over {rows:,} vectors, top 10"
    tables = [Table(title, BATCH_COLUMNS, batches), Table(f"{title}, concurrent clients", CLIENT_COLUMNS, clients)]
    best = max(_as_float(row["queries/s"]) for row in clients)
    text = (
        "searches ran; nothing is measured on a CPU" if is_small else f"{best:,.0f} queries/s, loaded in {loaded:.0f} s"
    )
    return Finding(True, text, tables)


def _as_float(value: object) -> float:
    assert isinstance(value, float)
    return value
