"""Defines the trainer's REST routes, one for each rpc."""

from fastapi import APIRouter

from searchrl.contracts.v1 import trainer_pb2 as pb
from searchrl.platform.server.rest_mirror import Mirror, mirror_router
from services.trainer.grpc_servicer import TrainerServicer

MIRRORS = (
    Mirror("GET", "/v1/status", "GetStatus", pb.GetStatusRequest, pb.GetStatusResponse),
    Mirror("GET", "/v1/metrics", "GetMetrics", pb.GetMetricsRequest, pb.GetMetricsResponse),
    Mirror("POST", "/v1/admin/pause", "Pause", pb.PauseRequest, pb.GetStatusResponse),
    Mirror("POST", "/v1/admin/resume", "Resume", pb.ResumeRequest, pb.GetStatusResponse),
    Mirror(
        "POST",
        "/v1/admin/checkpoint",
        "SaveCheckpoint",
        pb.SaveCheckpointRequest,
        pb.SaveCheckpointResponse,
        unlimited=True,
    ),
    Mirror("POST", "/v1/admin/stop", "Stop", pb.StopRequest, pb.GetStatusResponse),
)


def rest_router(servicer: TrainerServicer) -> APIRouter:
    return mirror_router(servicer, MIRRORS, "training")
