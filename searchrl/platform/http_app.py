"""How is a REST application put together? Routes of the service, probes, metrics and the error table."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

import searchrl
from searchrl.errors import ERROR_BY_KIND, ErrorKind, InvalidRequest, ServiceError
from searchrl.platform.auth import KeyRing
from searchrl.platform.health import Health
from searchrl.platform.metrics_endpoint import RequestMetrics, scrape
from searchrl.platform.request_gate import RequestGate, error_body, error_headers
from searchrl.platform.status_map import KIND_BY_HTTP, STATUS


def build_http_app(
    title: str,
    routers: Sequence[APIRouter],
    *,
    keys: KeyRing,
    health: Health,
    registry: CollectorRegistry,
    admin_prefixes: Sequence[str] = ("/v1/admin",),
    max_body_bytes: int = 64 << 20,
) -> FastAPI:
    """Build the application; ``/docs`` and ``/openapi.json`` describe it.

    Args:
        title: "SearchRL" and the service's name, which is also its ``component`` in metrics.
    """
    metrics = RequestMetrics.of(registry, title.removeprefix("SearchRL ").replace(" ", "-"))
    metrics.follow(health)
    app = FastAPI(title=title, version=searchrl.__version__)
    for router in routers:
        app.include_router(router)
    app.include_router(_probes(health, registry))
    _add_error_handlers(app)
    app.add_middleware(
        RequestGate,
        keys=keys,
        health=health,
        metrics=metrics,
        admin_prefixes=admin_prefixes,
        max_body_bytes=max_body_bytes,
    )
    return app


def error_response(error: ServiceError) -> JSONResponse:
    """The error as JSON with its status by the table."""
    return JSONResponse(error_body(error), STATUS[error.kind][0], headers=error_headers(error))


def _probes(health: Health, registry: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/livez", summary="The process answers and can go on; 503 with the reason where not")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok" if health.alive else health.reason}, 200 if health.alive else 503)

    @router.get("/readyz", summary="Ready for traffic; 503 with the reason where not")
    async def readyz() -> JSONResponse:
        return JSONResponse({"status": health.reason}, 200 if health.ready else 503)

    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        content, content_type = scrape(registry, request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    return router


def _add_error_handlers(app: FastAPI) -> None:
    async def expected(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServiceError)
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return error_response(InvalidRequest(f"{place}: {first['msg']}"))

    async def routing(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = KIND_BY_HTTP.get(error.status_code, ErrorKind.INVALID)
        response = error_response(ERROR_BY_KIND.get(kind, ServiceError)(str(error.detail)))
        response.status_code = error.status_code
        return response

    app.add_exception_handler(ServiceError, expected)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)
