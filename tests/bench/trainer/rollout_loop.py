"""Measures the loop around model and engine: overlap with the learner, concurrent scoring, bookkeeping, packing.

    python -m tests.bench.trainer.rollout_loop overlap scoring bookkeeping packing

Orchestrator, rollout worker, search loop, rewards, rows and micro-batches are the trainer's own. Engine, retriever and
judge only wait, so that the figures show the loop and not a model: a turn takes 5 ms per token, a search a log-normal
time of 50 ms on average (1 in 1,000 takes 2 s, no search longer), and the update in ``overlap`` as long as the rollouts
of a step took alone.
"""

import argparse
import asyncio
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pyarrow import parquet

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Generation, Limits, Sampling
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Reward, Trajectory
from searchrl.small_world.files import WARM_START_FOLDER
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.algorithms.base import UpdateSettings
from services.trainer.algorithms.grpo import Grpo, GrpoSettings
from services.trainer.engines.base import RolloutEngine
from services.trainer.learner.batching import build_micro_batch, pack_micro_batches
from services.trainer.learner.train_batch import RowKey, TrainRow, probe_row
from services.trainer.rewards.base import RewardFunction
from services.trainer.rollouts.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.group import Group, RolloutSettings
from services.trainer.rollouts.orchestrator import Orchestrator
from services.trainer.rollouts.rollout_worker import RewardScorer, RolloutWorker
from services.trainer.rollouts.task_source import TaskSource
from services.trainer.runs.step_summary import summarize_rollouts
from services.trainer.runs.trajectory_files import write_trajectories
from tests.bench.tables import markdown_table

TOKEN_SECONDS = 0.005
SEARCH_MEAN, SEARCH_SIGMA, LONGEST_SEARCH = 0.05, 1.62, 2.0
# With this sigma one value in a thousand of a log-normal distribution of mean 0.05 reaches 2.0.
JUDGE_SECONDS = 0.03
SEARCHES = 2
QUERY = '<search_complete>False</search_complete><query>{{"query": "the director of film {number}"}}</query>'
FINISH = "<important_info>[1]</important_info><search_complete>True</search_complete>"
COLUMNS = ("figure", "value")


class WaitingEngine:
    """Samples scripted turns, each as long as its tokens take; new weights wait until no turn runs."""

    def __init__(self, tokenizer: ModelTokenizer, token_seconds: float, extra_text: str = "") -> None:
        self._turns = [
            *(tuple(tokenizer.encode(extra_text + QUERY.format(number=number))) for number in range(SEARCHES)),
            tuple(tokenizer.encode(extra_text + FINISH)),
        ]
        self._token_seconds = token_seconds
        self._sampled: dict[str, int] = {}
        self._version = 0
        self._running = 0
        self._idle, self._open = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._open.set()

    def open_session(self, rollout_id: str) -> None:
        self._sampled[rollout_id] = 0

    def close_session(self, rollout_id: str) -> None:
        self._sampled.pop(rollout_id, None)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        await self._open.wait()
        self._running += 1
        self._idle.clear()
        number = self._sampled.get(rollout_id, 0)
        ids = self._turns[min(number, len(self._turns) - 1)][: sampling.max_tokens]
        self._sampled[rollout_id] = number + 1
        version = self._version
        if self._token_seconds:
            await asyncio.sleep(self._token_seconds * len(ids))
        self._running -= 1
        if not self._running:
            self._idle.set()
        return Generation(ids, (-1.0,) * len(ids), (version,) * len(ids), "stop")

    async def push(self, version: int) -> None:
        self._open.clear()
        await self._idle.wait()
        self._version = version
        self._open.set()


class WaitingSearcher:
    """Finds the same passages for every query, after the drawn time."""

    mode = ""

    def __init__(self, words: int, mean: float) -> None:
        self._draw = random.Random(5)
        text = " ".join(f"word{number % 50}" for number in range(words))
        self._results = [SearchResult(Passage(f"p{n}", f"Title {n}", text), 1.0 / n, n) for n in range(1, 4)]
        self._mean = mean

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        if self._mean:
            drawn = self._draw.lognormvariate(math.log(self._mean) - SEARCH_SIGMA**2 / 2, SEARCH_SIGMA)
            await asyncio.sleep(min(drawn, LONGEST_SEARCH))
        return [self._results[:top_k] for _ in queries]


class WaitingReward:
    """Gives drawn rewards after the time of a judge."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._draw = random.Random(6)

    def start_step(self) -> None: ...

    async def score(self, question: Question, trajectory: Trajectory) -> Reward:
        if self._seconds:
            await asyncio.sleep(self._seconds)
        return Reward(float(self._draw.random() < 0.5))


class Loop:
    """The trainer's rollouts around parts that wait."""

    def __init__(
        self,
        settings: RolloutSettings,
        folder: Path,
        *,
        token_seconds: float = TOKEN_SECONDS,
        search_mean: float = SEARCH_MEAN,
        judge_seconds: float = JUDGE_SECONDS,
        words: int = 20,
        extra_text: str = "",
    ) -> None:
        tokenizer = ModelTokenizer.of_searcher(WARM_START_FOLDER)
        self.engine = WaitingEngine(tokenizer, token_seconds, extra_text)
        self.finished = FinishedRollouts(folder, lockstep=False)
        self.scorer = RewardScorer(cast(RewardFunction[Any], WaitingReward(judge_seconds)))
        limits = Limits(
            max_searches=SEARCHES, top_k=3, max_turn_tokens=2048, max_observation_tokens=2048, max_context_tokens=16384
        )
        profile = SearcherProfile(limits=limits)
        worker = RolloutWorker(
            self.engine, WaitingSearcher(words, search_mean), tokenizer, profile, self.scorer, settings, 1,
            finished=self.finished,
        )  # fmt: skip
        questions = [Question(f"q{number}", f"Who directed film {number}?", ("a",)) for number in range(4096)]

        async def probe() -> None: ...

        self.orchestrator = Orchestrator(
            TaskSource(questions, 1), worker, cast(RolloutEngine, self.engine), settings,
            CircuitBreaker(probe, CircuitBreakerSettings()),
        )  # fmt: skip

    def start(self) -> None:
        self.finished.open({"run": "bench"})
        self.finished.serve(0, "weights-0")
        self.orchestrator.start(0)

    async def publish(self, version: int) -> None:
        await self.engine.push(version)
        self.finished.serve(version, f"weights-{version}")
        self.orchestrator.grant_step(version)

    async def close(self) -> None:
        await self.orchestrator.close()
        self.finished.close(discard=True)


async def steps_per_second(folder: Path, staleness: int, update_seconds: float, steps: int) -> float:
    """Run the steps of a training run whose update takes ``update_seconds``."""
    loop = Loop(RolloutSettings(max_staleness=staleness, stale_groups="wait"), folder)
    loop.start()
    await loop.orchestrator.next_groups()  # not counted: the first step has nothing to overlap with
    started = time.perf_counter()
    for version in range(1, steps + 1):
        await asyncio.sleep(update_seconds)
        await loop.publish(version)
        await loop.orchestrator.next_groups()
    seconds = time.perf_counter() - started
    await loop.close()
    return steps / seconds


async def measure_overlap(folder: Path) -> list[tuple[str, object]]:
    alone = 1 / await steps_per_second(folder / "alone", 0, 0.0, 5)
    rates = {staleness: await steps_per_second(folder / f"s{staleness}", staleness, alone, 12) for staleness in (0, 1)}
    return [
        ("rollouts of a step (24 x 8), seconds, and as long for the update", alone),
        ("steps per minute, staleness 0", 60 * rates[0]),
        ("steps per minute, staleness 1", 60 * rates[1]),
        ("ratio", rates[1] / rates[0]),
    ]


async def measure_scoring(folder: Path, count: int = 120) -> list[tuple[str, object]]:
    loop = Loop(RolloutSettings(groups_per_step=1), folder, token_seconds=0, search_mean=0)
    loop.start()
    (group,) = await loop.orchestrator.next_groups()
    trajectory = group.rollouts[0].trajectory
    assert trajectory is not None
    question = group.prompt.question
    started = time.perf_counter()
    for _ in range(count):
        await loop.scorer.score(question, trajectory)
    serial = time.perf_counter() - started
    started = time.perf_counter()
    await asyncio.gather(*(loop.scorer.score(question, trajectory) for _ in range(count)))
    together = time.perf_counter() - started
    await loop.close()
    return [
        (f"{count} rewards one after another, seconds (a judge of {JUDGE_SECONDS * 1e3:g} ms)", serial),
        (f"{count} rewards by the scorer, seconds", together),
        ("ratio", serial / together),
    ]


async def sample_step(folder: Path, groups_per_step: int) -> tuple[list[Group], float]:
    """Return a step's groups of rollouts of about 3,000 tokens, and the seconds without any wait."""
    settings = RolloutSettings(groups_per_step=groups_per_step)
    loop = Loop(
        settings, folder, token_seconds=0, search_mean=0, judge_seconds=0, words=40, extra_text="think of it " * 20
    )
    started = time.perf_counter()
    loop.start()
    groups = await loop.orchestrator.next_groups()
    seconds = time.perf_counter() - started
    await loop.close()
    return groups, seconds


async def measure_bookkeeping(folder: Path) -> list[tuple[str, object]]:
    """Measure a step of 2,560 rollouts through everything but model, engine, retriever and judge."""
    groups, seconds = await sample_step(folder / "rollouts", 320)
    results: list[tuple[str, object]] = [("rollouts, each kept on disk, seconds", seconds)]

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        results.append((f"{name}, seconds", time.perf_counter() - started))
        return result

    rows = timed("rows with advantages", lambda: Grpo(GrpoSettings(), UpdateSettings()).rows(groups, 1.0).rows)
    timed(
        "micro-batches",
        lambda: [build_micro_batch(micro, torch.device("cpu")) for micro in pack_micro_batches(rows, 16384)],
    )
    timed("the step's line of metrics", lambda: summarize_rollouts(groups))
    timed(
        "trajectory file, written beside the next step",
        lambda: write_trajectories(folder / "step.parquet", 1, groups, ""),
    )
    return [("rollouts", len(rows)), ("tokens per rollout", sum(map(len, rows)) / len(rows)), *results]


async def measure_packing(trajectories: Sequence[Path]) -> list[tuple[str, object]]:
    """Measure the share of real tokens in the micro-batches of recorded steps, by token budget."""
    if not trajectories:
        raise SystemExit("packing needs --trajectories: the parquet files of a run")
    results: list[tuple[str, object]] = []
    for budget in (2048, 8192, 16384):
        real = padded = 0
        for file in trajectories:
            lengths = [len(ids) for ids in parquet.read_table(file, columns=["ids"])["ids"].to_pylist() if ids]
            for micro in pack_micro_batches([row_of(length, n) for n, length in enumerate(lengths)], budget):
                real += sum(map(len, micro))
                padded += len(micro) * max(map(len, micro))
        results.append((f"tokens that are not padding, budget {budget}", real / padded))
    return results


def row_of(length: int, number: int) -> TrainRow:
    """Return a row of this length."""
    zeros = np.zeros(length, dtype=np.int64)
    return replace(probe_row(zeros.tolist()), key=RowKey(number, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["overlap", "scoring", "bookkeeping", "packing"])
    parser.add_argument("--trajectories", type=Path, nargs="+", default=[], help="parquet files of a run, for packing")
    arguments = parser.parse_args()
    for part in dict.fromkeys(arguments.parts):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            measures = {
                "overlap": lambda folder=folder: measure_overlap(folder),
                "scoring": lambda folder=folder: measure_scoring(folder),
                "bookkeeping": lambda folder=folder: measure_bookkeeping(folder),
                "packing": lambda: measure_packing(arguments.trajectories),
            }
            results = asyncio.run(measures[part]())
        markdown_table(part, COLUMNS, [dict(zip(COLUMNS, result, strict=True)) for result in results])
        print()  # noqa: T201 - a benchmark's output


if __name__ == "__main__":
    main()
