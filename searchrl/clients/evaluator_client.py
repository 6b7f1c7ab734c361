"""Client of the evaluator over gRPC: starts, watches and reads evaluation runs."""

from collections.abc import AsyncIterator, Sequence

from searchrl.clients.channel import Tls
from searchrl.clients.service_client import ServiceClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1.evaluator_pb2_grpc import EvaluatorStub
from searchrl.platform.retry import RetryPolicy


class EvaluatorClient(ServiceClient[EvaluatorStub]):
    """Typed calls to the evaluator at ``target`` ("host:port").

    ``timeout_seconds`` limits every call but ``watch_run``, which lasts until the run ends.
    """

    def __init__(
        self,
        target: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        tls: Tls | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        super().__init__(target, EvaluatorStub, key=key, timeout_seconds=timeout_seconds, tls=tls, retries=retries)

    async def create_run(
        self,
        run_id: str,
        questions: str,
        methods: Sequence[pb.MethodSpec],
        *,
        limit: int = 0,
        concurrency: int = 0,
        controls: bool = False,
        retry_failures: bool = False,
        allow_unscored: bool = False,
        keep_trajectories: bool = False,
        allow_changes: bool = False,
    ) -> pb.EvaluationRun:
        """Start a run; if one with this id exists, continue it, or return it if it is complete.

        Args:
            questions: path of the question file as the evaluator sees it.
            limit: number of questions; 0 for all.
            concurrency: episodes at once; 0 for the evaluator's default.
            controls: also run closed book, oracle and random retrieval.
            retry_failures: also retry questions with a permanent failure.
            allow_unscored: accept questions without golden answers.
            keep_trajectories: store every answer's trajectory.
            allow_changes: continue even if the model, the index or the prompt changes during the run.
        """
        request = pb.CreateRunRequest(
            run_id=run_id,
            questions=questions,
            methods=methods,
            limit=limit,
            concurrency=concurrency,
            controls=controls,
            retry_failures=retry_failures,
            allow_unscored=allow_unscored,
            keep_trajectories=keep_trajectories,
            allow_changes=allow_changes,
        )
        return await self._channel.unary(lambda stub: stub.CreateRun, request)

    def watch_run(self, run_id: str) -> AsyncIterator[pb.EvaluationRun]:
        """Yield the run's progress until it ends."""
        request = pb.WatchRunRequest(run_id=run_id)
        return self._channel.stream(lambda stub: stub.WatchRun, request, unlimited=True)

    async def get_run(self, run_id: str) -> pb.EvaluationRun:
        return await self._channel.unary(lambda stub: stub.GetRun, pb.GetRunRequest(run_id=run_id))

    async def list_runs(self) -> list[pb.EvaluationRun]:
        return list((await self._channel.unary(lambda stub: stub.ListRuns, pb.ListRunsRequest())).runs)

    async def get_report(self, run_id: str, format: str = "html") -> bytes:
        """Return the report as "html" or "json"."""
        request = pb.GetReportRequest(run_id=run_id, format=format)
        return (await self._channel.unary(lambda stub: stub.GetReport, request)).content
