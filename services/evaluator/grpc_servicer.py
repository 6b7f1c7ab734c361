"""Translates the evaluator's rpc messages into calls of ``EvaluationService``, which makes every decision."""

from collections.abc import AsyncIterator

import grpc

from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1.evaluator_pb2_grpc import EvaluatorServicer as GeneratedServicer
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.records.evaluation_run import MethodSpec, RunRecord, RunSpec
from services.evaluator.runs.run_progress import ColumnResults, RunResults

Context = grpc.aio.ServicerContext | None


class EvaluatorServicer(GeneratedServicer):
    """Translates messages; also the target of the REST mirror, which has no context, so it is unused."""

    def __init__(self, service: EvaluationService) -> None:
        self._service = service

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.EvaluationRun:
        spec = spec_from_wire(request)
        return results_to_wire(await self._service.create_run(spec, retry_failures=request.retry_failures))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.EvaluationRun]:
        async for results in self._service.watch_run(request.run_id):
            yield results_to_wire(results)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.EvaluationRun:
        return results_to_wire(await self._service.get_run(request.run_id))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=map(record_to_wire, await self._service.list_runs()))

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.GetReportResponse:
        format = request.format or "html"
        return pb.GetReportResponse(format=format, content=await self._service.report(request.run_id, format))


def spec_from_wire(request: pb.CreateRunRequest) -> RunSpec:
    """Read a request.

    Raises:
        InvalidRequest: the spec is invalid (labels, number of methods, negative numbers).
    """
    return RunSpec(
        run_id=request.run_id,
        questions=request.questions,
        methods=tuple(map(method_from_wire, request.methods)),
        limit=request.limit,
        concurrency=request.concurrency,
        controls=request.controls,
        allow_unscored=request.allow_unscored,
        keep_trajectories=request.keep_trajectories,
        allow_changes=request.allow_changes,
    )


def method_from_wire(message: pb.MethodSpec) -> MethodSpec:
    # A temperature of 0.7 arrives as 0.699999988; rounded, it is equal to that of the same request over REST.
    return MethodSpec(
        method=message.method,
        label=message.label,
        temperature=round(message.temperature, 6) if message.HasField("temperature") else None,  # a float32
        top_k=message.top_k if message.HasField("top_k") else None,
        max_searches=message.max_searches if message.HasField("max_searches") else None,
        seed=message.seed if message.HasField("seed") else None,
    )


def record_to_wire(record: RunRecord) -> pb.EvaluationRun:
    return pb.EvaluationRun(
        run_id=record.spec.run_id,
        state=record.state.value,
        questions_sha256=record.questions_sha256,
        index_generation=record.index_generation,
        error=record.error,
        reason=record.reason.value,
        provenance=[pb.ProvenanceValue(name=name, values=values) for name, values in record.provenance.items()],
        created=record.created,
    )


def results_to_wire(results: RunResults) -> pb.EvaluationRun:
    message = record_to_wire(results.record)
    message.methods.extend(map(_column_to_wire, results.columns))
    return message


def _column_to_wire(column: ColumnResults) -> pb.MethodResult:
    metrics = [
        pb.MetricValue(name=name, mean=value.mean, low=value.low, high=value.high, count=value.count)
        for name, value in column.estimates.items()
    ]
    return pb.MethodResult(
        label=column.label,
        done=column.done,
        failed=column.failed,
        lost=column.lost,
        not_applicable=column.not_applicable,
        total=column.total,
        metrics=metrics,
    )
