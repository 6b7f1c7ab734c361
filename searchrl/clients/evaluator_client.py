"""How are evaluation runs started, watched and read? The evaluator over gRPC."""

from collections.abc import AsyncIterator, Sequence

from searchrl.clients.channel import Tls
from searchrl.clients.retry_policy import RetryPolicy
from searchrl.clients.service_client import ServiceClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1.evaluator_pb2_grpc import EvaluatorStub


class EvaluatorClient(ServiceClient[EvaluatorStub]):
    """Typed calls to the evaluator at ``target`` ("host:port").

    A run is watched for as long as it takes: ``watch_run`` ignores ``timeout_seconds``, which limits the other calls.
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
        """Start a run, or continue or get the one of that id.

        Args:
            questions: jsonl file as the evaluator sees it.
            limit: number of questions; 0 for all.
            retry_failures: also ask again what was refused for good.
            allow_unscored: accept questions without golden answers.
            keep_trajectories: store every answer's trajectory.
            allow_changes: continue where the model, the index or the prompt changes in the middle.
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
        """The run's progress until it ends."""
        request = pb.WatchRunRequest(run_id=run_id)
        return self._channel.stream(lambda stub: stub.WatchRun, request, unlimited=True)

    async def get_run(self, run_id: str) -> pb.EvaluationRun:
        return await self._channel.unary(lambda stub: stub.GetRun, pb.GetRunRequest(run_id=run_id))

    async def list_runs(self) -> list[pb.EvaluationRun]:
        return list((await self._channel.unary(lambda stub: stub.ListRuns, pb.ListRunsRequest())).runs)

    async def get_report(self, run_id: str, format: str = "html") -> bytes:
        """The report as "html" or "json"."""
        request = pb.GetReportRequest(run_id=run_id, format=format)
        return (await self._channel.unary(lambda stub: stub.GetReport, request)).content
