"""Client of the trainer over gRPC: watches and controls a training run."""

from collections.abc import Mapping

from searchrl.clients.channel import Tls
from searchrl.clients.service_client import ServiceClient
from searchrl.contracts.v1 import trainer_pb2 as pb
from searchrl.contracts.v1.trainer_pb2_grpc import TrainerStub
from searchrl.platform.retry import RetryPolicy


class TrainerClient(ServiceClient[TrainerStub]):
    """Typed calls to the trainer at ``target`` ("host:port"). Calls that change the run need an admin key."""

    def __init__(
        self,
        target: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        tls: Tls | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        super().__init__(target, TrainerStub, key=key, timeout_seconds=timeout_seconds, tls=tls, retries=retries)

    async def get_status(self) -> pb.GetStatusResponse:
        return await self._channel.unary(lambda stub: stub.GetStatus, pb.GetStatusRequest())

    async def get_metrics(self, since_step: int = 0) -> dict[int, Mapping[str, float]]:
        """Return the metrics by step, from ``since_step`` on."""
        request = pb.GetMetricsRequest(since_step=since_step)
        response = await self._channel.unary(lambda stub: stub.GetMetrics, request)
        return {row.step: dict(row.values) for row in response.steps}

    async def pause(self) -> pb.GetStatusResponse:
        """Stop before the next step; the state becomes "paused"."""
        return await self._channel.unary(lambda stub: stub.Pause, pb.PauseRequest())

    async def resume(self) -> pb.GetStatusResponse:
        return await self._channel.unary(lambda stub: stub.Resume, pb.ResumeRequest())

    async def save_checkpoint(self) -> pb.SaveCheckpointResponse:
        return await self._channel.unary(lambda stub: stub.SaveCheckpoint, pb.SaveCheckpointRequest(), unlimited=True)

    async def stop(self) -> pb.GetStatusResponse:
        """End the run after the current step, with a checkpoint to resume from."""
        return await self._channel.unary(lambda stub: stub.Stop, pb.StopRequest())
