"""The table of checks: what each shows, the tests or the measurement that it runs, and its time limit."""

import os
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import torch

from tests.gpu.check.isolation import Finding
from tests.gpu.check.measurements import measure_encoding, measure_search, measure_updates

TESTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How all checks run.

    Attributes:
        device: cuda; cpu for a dry run with tiny shapes.
        first_case: run only the first case of each test.
    """

    device: str
    first_case: bool = False


class CheckFunction(Protocol):
    """Runs a check in the current process."""

    def __call__(self, settings: CheckSettings) -> Finding: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the report; the check is killed after ``seconds``."""

    name: str
    shows: str
    seconds: float
    run: CheckFunction


class _Results:
    """A plugin of pytest that counts outcomes, and can leave out all but the first case of each test."""

    def __init__(self, first_case: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        self._first_case = first_case

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._first_case:
            firsts: dict[str, pytest.Item] = {}
            for item in items:
                firsts.setdefault(item.nodeid.split("[")[0], item)
            items[:] = firsts.values()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid.split("::")[-1])


def run_tests(*names: str) -> CheckFunction:
    """Return a check that runs these tests of ``tests/gpu``: ``FILE`` or ``FILE::TEST``."""

    def run(settings: CheckSettings) -> Finding:
        os.environ["SEARCHRL_GPU_DRY_RUN"] = "1" if settings.device == "cpu" else "0"
        results = _Results(settings.first_case)
        tests = [str(TESTS / name) for name in names]
        # Plugins of the complete test run need not be installed here, and loading them takes longer than many tests.
        # Without them, the project's options for them are unknown.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        options = ["-W", "ignore::pytest.PytestConfigWarning", "-p", "no:cacheprovider", f"--confcutdir={TESTS}"]
        status = pytest.main([*options, *tests], plugins=[results])
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(results.counts.items())) or "no test ran"
        passed = status == pytest.ExitCode.OK and results.counts["passed"] > 0
        return Finding(passed, "; ".join([counts, *results.failed]))

    return run


def describe_device(device: str) -> Finding:
    """Name the device and the versions; not passed if there is no such device."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device == "cpu":
        return Finding(True, f"the CPU ({versions}): a dry run, nothing of a GPU was tested")
    if not torch.cuda.is_available():
        return Finding(False, f"torch {torch.__version__} sees no CUDA GPU; --device cpu makes a dry run")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Finding(True, f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB, CUDA {torch.version.cuda}, {versions})")


def measure_shape(shape: str) -> CheckFunction:
    """Return a check that measures updates of this shape; of a tiny one in a dry run."""
    return lambda settings: measure_updates("tiny" if settings.device == "cpu" else shape, settings.device)


def _measure_encoding(settings: CheckSettings) -> Finding:
    return measure_encoding(settings.device)


def _measure_search(settings: CheckSettings) -> Finding:
    return measure_search(settings.device)


LEARNER, ENGINE = "test_gpu_learner.py", "test_gpu_engine.py"
# On an H200 each check took half of its limit, 15 s of that for its imports. The limits add up to less than 8 minutes,
# so that every check has its turn. A check without a limit of its own could take the time of all others.
CHECKS = (
    Check(
        "learner",
        "log-probabilities, losses, gradients and optimizer steps are those of the CPU",
        35,
        run_tests(
            f"{LEARNER}::test_log_probabilities_in_float32_equal_those_on_the_cpu",
            f"{LEARNER}::test_loss_gradient_and_report_equal_those_on_the_cpu",
            f"{LEARNER}::test_an_optimizer_step_goes_where_it_goes_on_the_cpu",
            f"{LEARNER}::test_packed_rows_have_the_gradient_of_padded_ones",
        ),
    ),
    Check(
        "bfloat16",
        "passes in bfloat16 over float32 weights learn at a rate of 1e-6, and stay near float32",
        30,
        run_tests(
            f"{LEARNER}::test_a_rate_of_one_millionth_moves_the_weights_as_in_float32",
            f"{LEARNER}::test_bfloat16_stays_within_its_bound_of_float32",
            f"{LEARNER}::test_an_update_in_bfloat16_makes_good_tokens_more_likely",
        ),
    ),
    Check(
        "memory settings",
        "activation checkpointing, small logit and token budgets and offloading do not change the gradient",
        30,
        run_tests(
            f"{LEARNER}::test_memory_settings_do_not_change_the_gradient",
            f"{LEARNER}::test_a_sharded_model_has_the_gradients_of_a_complete_one",
        ),
    ),
    Check(
        "adapters",
        "LoRA and QLoRA adapters and compiled layers learn",
        60,
        run_tests(f"{LEARNER}::test_adapters_and_compiled_layers_learn"),
    ),
    Check(
        "engine",
        "tokens and log-probabilities of the torch engine are those of the learner",
        30,
        run_tests(
            f"{ENGINE}::test_greedy_tokens_are_the_most_likely_ones_of_the_learners_model",
            f"{ENGINE}::test_sampled_log_probabilities_are_the_learners",
        ),
    ),
    Check(
        "publishing",
        "the engine samples with the weights that the learner published; exports and shared memory hold them",
        40,
        run_tests(
            f"{ENGINE}::test_weights_pushed_from_the_learner_are_those_that_the_engine_samples_with",
            f"{ENGINE}::test_another_process_reads_the_weights_in_memory_that_the_trainer_shares",
            "test_gpu_checkpoints.py::test_an_export_from_the_gpu_loads_with_the_same_weights",
        ),
    ),
    Check(
        "retrieval",
        "vectors are those of the CPU, and exact search over them finds the same passages",
        40,
        run_tests("test_gpu_encoder.py", "test_gpu_search.py"),
    ),
    Check("encoding", "throughput of an encoder in BERT-base's shape", 40, _measure_encoding),
    Check("search", "exact search over as many vectors as English Wikipedia has passages", 75, _measure_search),
    Check(
        "update, 0.5B",
        "estimated memory is that of the allocator; tokens per second and MFU",
        40,
        measure_shape("qwen2.5-0.5b"),
    ),
    Check(
        "update, 1.5B",
        "the same in the shape of Qwen2.5-1.5B",
        55,
        measure_shape("qwen2.5-1.5b"),
    ),
)


def run_named(name: str, settings: CheckSettings) -> Finding:
    """Run the check of this name; unlike its function, a name can be sent to another process."""
    [check] = [check for check in CHECKS if check.name == name]
    return check.run(settings)
