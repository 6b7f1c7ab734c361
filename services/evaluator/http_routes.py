"""Defines the evaluator's REST routes and its HTML pages."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, Response

from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from services.evaluator.evaluation_service import EvaluationService
from services.evaluator.grpc_servicer import EvaluatorServicer
from services.evaluator.reports.pages import RUNS_PER_PAGE, render_runs

MIRRORS = (
    Mirror("POST", "/v1/runs", "CreateRun", pb.CreateRunRequest, pb.EvaluationRun),
    Mirror("GET", "/v1/runs", "ListRuns", pb.ListRunsRequest, pb.ListRunsResponse),
    Mirror("GET", "/v1/runs/{run_id}", "GetRun", pb.GetRunRequest, pb.EvaluationRun),
    Mirror("GET", "/v1/runs/{run_id}/watch", "WatchRun", pb.WatchRunRequest, pb.EvaluationRun, True, unlimited=True),
)
# A report is self-contained: the browser may load no script, image or style from anywhere else.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ),
    "x-content-type-options": "nosniff",
}
MEDIA_TYPES = {"html": "text/html; charset=utf-8", "json": "application/json"}


def rest_router(servicer: EvaluatorServicer) -> APIRouter:
    """The REST mirrors of the rpcs."""
    return mirror_router(servicer, MIRRORS, "runs")


def page_router(service: EvaluationService) -> APIRouter:
    """The list of runs and the reports, for a browser."""
    router = APIRouter(tags=["pages"])

    @router.get("/", summary="List of runs", response_class=HTMLResponse)
    async def runs(start: Annotated[int, Query(ge=0, le=1_000_000)] = 0) -> HTMLResponse:
        # The records alone are cheap; the numbers, with their intervals, are only computed for the runs of this page.
        records = await service.list_runs()
        end = start + RUNS_PER_PAGE
        shown = [await service.get_run(record.spec.run_id) for record in records[start:end]]
        return HTMLResponse(render_runs(shown, older=end if end < len(records) else None), headers=PAGE_HEADERS)

    @router.get("/runs/{run_id}", summary="Report of a run", response_class=HTMLResponse)
    async def run(run_id: str) -> Response:
        return await report(run_id)

    @router.get("/v1/runs/{run_id}/report", summary="Report of a run as html or json", operation_id="GetReport")
    async def report(run_id: str, format: str = "html") -> Response:
        content = await service.report(run_id, format)
        return Response(content, media_type=MEDIA_TYPES[format], headers=PAGE_HEADERS)

    return router
