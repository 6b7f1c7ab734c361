"""Runs a quickstart from the small world to the report, with the same services that Helm deploys."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from searchrl.cli.quickstart.plan import WARM_START, QuickstartPlan
from searchrl.cli.quickstart.report import large_request, main_request
from searchrl.cli.quickstart.view import QuickstartView, sparkline
from searchrl.clients.evaluator_client import EvaluatorClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.local.index_build import IndexRequest
from searchrl.local.instance import acquire_lock
from searchrl.local.local_services import Inputs, LocalServices
from searchrl.local.service_plan import ServicePlan
from searchrl.local.supervisor import ServiceFailed
from searchrl.small_world.files import SmallWorldFiles, write_small_world
from searchrl.storage.durable_files import read_complete_lines

WORLD = "Write the small world"
SERVICES = "Build the index, start the services"
WARM = "Make the warm start"
BEFORE = "Evaluate before training"
TRAINING = "Reinforcement learning"
AFTER = "Evaluate after training"
LARGE = "Evaluate on the larger world"
REPORT = "Write the report"
PHASES = (WORLD, WARM, SERVICES, BEFORE, TRAINING, AFTER, LARGE, REPORT)

GREEDY, SAMPLED = 0.0, 1.0  # temperatures; rollouts are sampled at 1
CONCURRENCY = 32  # episodes at once; fewer leave the engines' batches smaller
POLL_SECONDS = 0.5  # between looks at the metrics file; a step takes seconds


class QuickstartSession:
    """One quickstart in its own folder, with its own processes and ports."""

    def __init__(self, folder: Path, plan: QuickstartPlan, view: QuickstartView) -> None:
        self._folder = folder
        self._plan = plan
        self._view = view
        self._started = time.monotonic()

    def run(self) -> dict[str, object]:
        """Run all phases and return the summary; however it ends, every process is stopped."""
        with self._view.phase(WORLD):
            files = self._write_world()
        # The report is composed after this block: the services have stopped, and the evaluator has closed its store.
        with acquire_lock(self._folder):
            # A slow machine may need more than the 120 s that ``up`` allows for a service's start.
            inputs = Inputs(
                index=IndexRequest(files.corpus), questions=files.test, searcher=WARM_START, ready_seconds=180.0
            )
            services = LocalServices(self._folder, inputs, ServicePlan(self._folder))
            try:
                self._learn_and_compare(services, files)
            finally:
                services.close()
        with self._view.phase(REPORT):
            return self._write_report()

    def _write_world(self) -> SmallWorldFiles:
        files = write_small_world(
            self._folder / "world",
            seed=self._plan.world_seed,
            train_worlds=self._plan.train_worlds,
            test_worlds=self._plan.test_worlds,
            large_questions=self._plan.large_questions,
        )
        self._view.say(f"{self._plan.train_worlds} worlds to learn in, {self._plan.test_worlds} unseen, 1 larger")
        return files

    def _learn_and_compare(self, services: LocalServices, files: SmallWorldFiles) -> None:
        with self._view.phase(SERVICES):
            services.start()
            self._view.say("retriever, generator, evaluator, searcher")
        untrained = WARM_START
        if self._plan.from_scratch:
            with self._view.phase(WARM):
                untrained = self._make_warm_start(services, files)
                services.serve_searcher(untrained)
        with self._view.phase(BEFORE):
            methods = [
                pb.MethodSpec(method="direct"),
                pb.MethodSpec(method="rag"),
                pb.MethodSpec(method="title_heuristic"),
                pb.MethodSpec(method="s3", label="s3-untrained", temperature=GREEDY),
                pb.MethodSpec(method="s3", label="s3-untrained-sampled", temperature=SAMPLED, seed=self._plan.seed),
            ]
            self._evaluate(services, "before", files.test, methods, self._plan.test_questions, controls=True)
        with self._view.phase(TRAINING):
            trained = self._train(services, files, untrained)
        with self._view.phase(AFTER):
            services.serve_searcher(trained)
            methods = [
                pb.MethodSpec(method="s3", temperature=GREEDY),
                pb.MethodSpec(method="s3", label="s3-sampled", temperature=SAMPLED, seed=self._plan.seed),
            ]
            self._evaluate(services, "after", files.test, methods, self._plan.test_questions)
        with self._view.phase(LARGE):
            methods = [
                pb.MethodSpec(method="rag"),
                pb.MethodSpec(method="s3", temperature=GREEDY),
                pb.MethodSpec(method="s3", label="s3-sampled", temperature=SAMPLED, seed=self._plan.seed),
            ]
            self._evaluate(services, "larger", files.large, methods, self._plan.large_questions)

    def _evaluate(
        self,
        services: LocalServices,
        run_id: str,
        questions: Path,
        methods: Sequence[pb.MethodSpec],
        limit: int,
        controls: bool = False,
    ) -> None:
        target = services.records()["evaluator"].grpc
        asyncio.run(self._evaluate_over(target, run_id, questions, methods, limit, controls))

    async def _evaluate_over(
        self, target: str, run_id: str, questions: Path, methods: Sequence[pb.MethodSpec], limit: int, controls: bool
    ) -> None:
        client = EvaluatorClient(target)
        try:
            await client.create_run(
                run_id, str(questions), methods, limit=limit, concurrency=CONCURRENCY, controls=controls
            )
            async for progress in client.watch_run(run_id):
                self._view.say("  ".join(_cell(result) for result in progress.methods))
                if progress.state in ("failed", "incomplete"):
                    raise ServiceFailed("evaluator", None, progress.error)
        finally:
            await client.close()

    def _train(self, services: LocalServices, files: SmallWorldFiles, start: Path) -> Path:
        """Run the training job as a separate process, show its steps, and return the trained model's folder."""
        run_folder = self._folder / "training"
        ready_file = services.supervisor.ready_file("trainer")
        config = {
            "preset": "small_world",
            "model": str(start),
            "questions": str(files.train),
            "output": str(run_folder),
            "seed": self._plan.seed,
            "steps": self._plan.steps,
            "services": {"retriever": services.records()["retriever"].grpc,
                         "generator": services.records()["generator"].grpc},
        }  # fmt: skip
        path = self._folder / "config" / "training.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [sys.executable, "-m", "services.trainer", "--config", str(path)]
        environment = {
            "TRAINER_LISTEN__HTTP_PORT": "0",
            "TRAINER_LISTEN__GRPC_PORT": "0",
            "TRAINER_READY_FILE": str(ready_file),
        }
        # Not restarted after a crash, whose cause the quickstart should show instead.
        services.supervisor.start("trainer", command, environment, restart=False)
        self._follow(services, run_folder / "metrics.jsonl")
        return run_folder / "final"

    def _follow(self, services: LocalServices, metrics: Path) -> None:
        """Show each step as it is logged, until the job ends.

        Raises:
            ServiceFailed: the job failed.
        """
        while True:
            self._show_steps(metrics)
            try:
                # The wait is also the pause between two looks at the metrics, and ends as soon as the job does.
                exit_code = services.supervisor.wait("trainer", POLL_SECONDS)
            except TimeoutError:
                continue
            self._show_steps(metrics)
            if exit_code != 0:
                tail = services.supervisor.processes()["trainer"].log_tail()
                raise ServiceFailed("trainer", exit_code, tail)
            return

    def _show_steps(self, metrics: Path) -> None:
        steps = read_complete_steps(metrics)
        if steps:
            curve = sparkline([step["success"] for step in steps])
            last = steps[-1]
            self._view.say(
                f"step {last['step']}/{self._plan.steps}  right {last['success']:.2f}  "
                f"searches {last['searches']:.1f}  documents {last['documents']:.1f}  {curve}"
            )

    def _make_warm_start(self, services: LocalServices, files: SmallWorldFiles) -> Path:
        output = self._folder / "warm_start"
        command = [sys.executable, "-m", "services.trainer.small_world.warm_start", "--output", str(output)]
        command += ["--questions", str(files.train), "--retriever", services.records()["retriever"].grpc]
        if self._plan.demonstrations is not None:
            command += ["--demonstrations", str(self._plan.demonstrations)]
        self._run(command, "warm_start")
        return output

    def _write_report(self) -> dict[str, object]:
        report = self._folder / "report"
        self._compose("large", large_request(self._folder, self._plan))
        large = json.loads((report / "larger_world" / "summary.json").read_text())["methods"]
        seconds = time.monotonic() - self._started
        self._compose("main", main_request(self._folder, self._plan, self._view.seconds(), seconds, large))
        summary = json.loads((report / "summary.json").read_text())
        for name, fields in large.items():
            # The two reports have different questions, so they are composed separately and joined by method.
            summary["methods"][name].update(fields)
        (report / "summary.json").write_text(json.dumps(summary, indent=1))
        return summary

    def _compose(self, name: str, request: dict[str, object]) -> None:
        path = self._folder / "config" / f"report_{name}.json"
        path.write_text(json.dumps(request))
        command = [sys.executable, "-m", "services.evaluator.commands.compose_report", "--request", str(path)]
        self._run(command, f"report_{name}")

    def _run(self, command: Sequence[str], name: str) -> None:
        log = self._folder / "logs" / f"{name}.log"
        with log.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise ServiceFailed(name, done.returncode, "\n".join(log.read_text().splitlines()[-15:]))


def read_complete_steps(metrics: Path) -> list[dict[str, float]]:
    """Read the steps in a trainer's ``metrics.jsonl``, without a last line that is being written."""
    lines = [json.loads(line) for line in read_complete_lines(metrics)] if metrics.exists() else []
    return [line for line in lines if "event" not in line]


def _cell(result: pb.MethodResult) -> str:
    accuracy = next((metric.mean for metric in result.metrics if metric.name == "accuracy"), None)
    if not result.done or accuracy is None:
        return ""
    return f"{result.label} {accuracy:.2f}"
