"""Sends answers and searches at a steady rate until SIGTERM, and prints the totals as a line of JSON every second.

Runs in a pod. A request starts when it is due, whether or not earlier ones have ended, as real users do. Only if a slow
machine leaves MOST_WAITING requests of a kind unfinished is one skipped, so that the load does not become a flood.
``answers`` and ``searches`` go over gRPC with the project's clients and their retries; ``posts`` (one connection each)
and ``kept`` (one client that keeps its connections) go over plain HTTP without retries.
"""

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import ClassVar

import httpx

from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.question import Question
from searchrl.errors import ServiceError
from searchrl.platform.retry import RetryPolicy

RELEASE = os.environ["RELEASE"]
RATES = {name: float(rate) for name, rate in json.loads(os.environ["RATES"]).items()}
FILTERS: dict[str, str] = json.loads(os.environ["FILTERS"])
TEXT, EXPECT = "What is the creator of Juniper Bank?", "Helga Tanaka"
GENERATOR, RETRIEVER = f"{RELEASE}-generator", f"{RELEASE}-retriever"
SECONDS = 60.0  # of one request with its retries; a lost one fails by its own timeout, not by the test's
MOST_WAITING = 8  # unfinished requests of a kind; more would measure a backlog, not the release
NONCE = secrets.token_hex(4)  # makes the queries new, so that no cache holds them


class WrongAnswer(Exception):
    """An answer arrived and is not the right one."""


class Witness(RetryPolicy):
    """The clients' own retry policy, which also records what is retried."""

    __slots__ = ()
    seen: ClassVar[list[str]] = []

    def pause_after(self, error: ServiceError, attempt: int) -> float | None:
        pause = RetryPolicy.pause_after(self, error, attempt)
        if pause is not None:
            Witness.seen.append(f"{time.strftime('%X')}: {error}")
        return pause


FAILURES = (ServiceError, httpx.HTTPError, WrongAnswer, ValueError, KeyError)


class Load:
    """Sends the four kinds of requests and counts their results."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        policy = Witness()
        self._generator = GeneratorClient(f"{GENERATOR}-headless:9090", timeout_seconds=SECONDS, retries=policy)
        self._retriever = RetrieverClient(f"{RETRIEVER}-headless:9090", timeout_seconds=SECONDS, retries=policy)
        self._kept = httpx.AsyncClient(timeout=SECONDS, trust_env=False)

    async def answers(self) -> None:
        question = Question("load", TEXT, (), filters=FILTERS)
        last = None
        async for event in self._generator.answer(question, "s3", temperature=0.0):
            last = event
        if last is None or last.final.answer != EXPECT:
            raise WrongAnswer(f"the last event is {last}")

    async def searches(self) -> None:
        found = await self._retriever.search([f"Juniper Bank {NONCE} {self.started['searches']}"], 3, FILTERS)
        _expect(3, len(found[0]))

    async def posts(self) -> None:
        body = {"model": "searchrl/rag", "messages": [{"role": "user", "content": TEXT}]}
        async with httpx.AsyncClient(timeout=SECONDS, trust_env=False, verify=False) as client:
            answer = await client.post(f"http://{GENERATOR}:8080/v1/chat/completions", json=body)
        answer.raise_for_status()
        _expect(1, len(answer.json()["choices"]))

    async def kept(self) -> None:
        body = {"queries": [f"Juniper Bank {NONCE} kept {self.started['kept']}"], "top_k": 3, "filters": FILTERS}
        answer = await self._kept.post(f"http://{RETRIEVER}:8080/v1/search", json=body)
        answer.raise_for_status()
        _expect(3, len(answer.json()["queries"][0]["results"]))

    async def run(self, kind: str, stop: asyncio.Event) -> None:
        """Start requests of ``kind`` at its rate until ``stop`` is set, then wait for those under way."""
        call, pause = getattr(self, kind), 1.0 / RATES[kind]
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while not stop.is_set():
                if self.started[kind] - self.done[kind] < MOST_WAITING:
                    self.started[kind] += 1
                    group.create_task(self._count(kind, call))
                due += pause
                try:
                    await asyncio.wait_for(stop.wait(), max(0.0, due - time.monotonic()))
                except TimeoutError:
                    continue

    async def begin(self, kind: str) -> None:
        """Repeat until the first right answer: network policies apply to a new pod a moment after its start."""
        while True:
            try:
                return await getattr(self, kind)()
            except FAILURES:
                await asyncio.sleep(0.2)

    async def report(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.print()

    def print(self) -> None:
        line = {
            "started": self.started,
            "done": self.done,
            "failed": len(self.failures),
            "failures": self.failures[-20:],
            "retries": len(Witness.seen),
            "retried": Witness.seen[-20:],
            "slowest": round(self.slowest, 3),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    async def _count(self, kind: str, call: Callable[[], Awaitable[None]]) -> None:
        started = time.monotonic()
        try:
            await call()
        except FAILURES as error:
            self.failures.append(f"{kind} at {time.strftime('%X')}: {type(error).__name__}: {error}")
        self.done[kind] += 1
        self.slowest = max(self.slowest, time.monotonic() - started)


def _expect(wanted: int, found: int) -> None:
    if found != wanted:
        raise WrongAnswer(f"{found} instead of {wanted}")


async def main() -> None:
    load, stop = Load(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.wait_for(asyncio.gather(*map(load.begin, RATES)), 60)
    Witness.seen.clear()
    reporting = asyncio.create_task(load.report())
    await asyncio.gather(*(load.run(kind, stop) for kind in RATES))
    reporting.cancel()
    load.print()


if __name__ == "__main__":
    asyncio.run(main())
