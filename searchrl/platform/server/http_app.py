"""Builds a REST application: a service's routes, probes, metrics, and errors by the common table."""

from collections.abc import Mapping, Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

import searchrl
from searchrl.errors import ERROR_BY_KIND, ErrorKind, InvalidRequest, ServiceError
from searchrl.platform.health import Health
from searchrl.platform.request_context import lift_default_deadline
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.http_middleware import ErrorShape, GuardMiddleware, error_body, error_headers, shape_of
from searchrl.platform.server.openapi_errors import describe_errors
from searchrl.platform.status_map import KIND_BY_HTTP, STATUS
from searchrl.platform.telemetry.metrics_endpoint import RequestMetrics, scrape


def build_http_app(
    title: str,
    routers: Sequence[APIRouter],
    *,
    keys: KeyRing,
    health: Health,
    registry: CollectorRegistry,
    admin_prefixes: Sequence[str] = ("/v1/admin",),
    max_body_bytes: int = 64 << 20,
    error_shapes: Mapping[str, ErrorShape] | None = None,
) -> FastAPI:
    """Build the application; ``/docs`` and ``/openapi.json`` describe it.

    Args:
        title: "SearchRL" and the service's name, which is also its ``component`` in metrics.
        routers: the service's own routes.
        admin_prefixes: paths that need a key with scope admin.
        error_shapes: error forms by path prefix, where they differ from ``error_body``.
    """
    shapes = error_shapes or {}
    metrics = RequestMetrics.of(registry, title.removeprefix("SearchRL ").replace(" ", "-"))
    metrics.follow(health)
    app = FastAPI(title=title, version=searchrl.__version__)
    app.state.request_seconds = None  # set by the runner, which knows the setting
    for router in routers:
        app.include_router(router)
    app.include_router(_probes(health, registry))
    _add_error_handlers(app, shapes)
    describe_errors(app, keys, shapes)
    # Starlette puts the last one added outermost, so this one sees every request before the routes and FastAPI's
    # parsing.
    app.add_middleware(
        GuardMiddleware,
        keys=keys,
        health=health,
        metrics=metrics,
        admin_prefixes=admin_prefixes,
        max_body_bytes=max_body_bytes,
        error_shapes=shapes,
    )
    return app


def error_response(error: ServiceError, shape: ErrorShape = error_body) -> JSONResponse:
    """Build the JSON answer of an error, with its status from the table."""
    return JSONResponse(shape(error), STATUS[error.kind][0], headers=error_headers(error))


async def without_deadline() -> None:
    """FastAPI dependency of routes that may take longer than the default deadline."""
    lift_default_deadline()


def _probes(health: Health, registry: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/livez", summary="Liveness: 200 while the process works; 503 with the reason if not")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok" if health.alive else health.reason}, 200 if health.alive else 503)

    @router.get("/health", summary="Readiness, under the name that OpenAI-compatible servers use")
    @router.get("/readyz", summary="Readiness: 200 if ready for traffic; 503 with the reason if not")
    async def readyz() -> JSONResponse:
        return JSONResponse({"status": health.reason}, 200 if health.ready else 503)

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        content, content_type = scrape(registry, request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    return router


def _add_error_handlers(app: FastAPI, shapes: Mapping[str, ErrorShape]) -> None:
    async def answer_service_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServiceError)
        return error_response(error, shape_of(request.url.path, shapes))

    async def answer_invalid_request(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # One problem is enough to act on, and the message keeps its size however wrong the body is. Status 400 instead
        # of FastAPI's 422, as gRPC has only INVALID_ARGUMENT for it.
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return await answer_service_error(request, InvalidRequest(f"{place}: {first['msg']}"))

    async def answer_routing_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = KIND_BY_HTTP.get(error.status_code, ErrorKind.INVALID)
        response = await answer_service_error(request, ERROR_BY_KIND.get(kind, ServiceError)(str(error.detail)))
        # Kept as the framework chose it: 405 and 415, for example, are not in the table. Its headers too: 405 must
        # carry Allow (RFC 9110, section 15.5.6).
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ServiceError, answer_service_error)
    app.add_exception_handler(RequestValidationError, answer_invalid_request)
    app.add_exception_handler(HTTPException, answer_routing_error)
