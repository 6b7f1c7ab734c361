"""Implements the trainer's gRPC methods: translates messages and leaves every decision to ``TrainingService``."""

from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from searchrl.contracts.v1 import trainer_pb2 as pb
from searchrl.contracts.v1.trainer_pb2_grpc import TrainerServicer as GeneratedServicer
from services.trainer.runs.run_folder import StepLine
from services.trainer.runs.run_state import RunState
from services.trainer.training_service import TrainingService
from services.trainer.validation.history import PREFIX, is_validation

Context = grpc.aio.ServicerContext | None


class TrainerServicer(GeneratedServicer):
    """Translates messages. The REST mirror calls it without a context, so no method uses one."""

    def __init__(self, service: TrainingService) -> None:
        self._service = service

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        return status_to_wire(self._service.status())

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        return pb.GetMetricsResponse(steps=lines_to_wire(self._service.metrics(request.since_step)))

    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.GetStatusResponse:
        return status_to_wire(self._service.pause())

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.GetStatusResponse:
        return status_to_wire(self._service.resume())

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Context) -> pb.SaveCheckpointResponse:
        folder, step = await self._service.save_checkpoint()
        return pb.SaveCheckpointResponse(path=str(folder), step=step)

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.GetStatusResponse:
        return status_to_wire(self._service.stop())


def status_to_wire(state: RunState) -> pb.GetStatusResponse:
    return pb.GetStatusResponse(
        run_id=state.run_id,
        state="paused" if state.is_waiting else state.phase.value,
        step=state.step,
        total_steps=state.total_steps,
        policy_version=state.version,
        fingerprint=state.fingerprint,
        mean_reward=state.mean_reward,
        last_checkpoint=str(state.last_checkpoint) if state.saved_step >= 0 else "",
        error=state.error,
        validation=validation_to_wire(state.validation) if state.validation is not None else None,
    )


def validation_to_wire(line: StepLine) -> pb.Validation:
    """Translate the line of a validation."""
    names = {"step", *(PREFIX + field.name for field in pb.Validation.DESCRIPTOR.fields)}
    values: dict[str, Any] = {name.removeprefix(PREFIX): line[name] for name in names if name in line}
    return pb.Validation(**values)


def lines_to_wire(lines: Iterable[StepLine]) -> Iterator[pb.StepMetrics]:
    """Translate lines to one message for each step, which also has the numbers of its validation."""
    values: dict[int, dict[str, float]] = {}
    for line in lines:
        # A validation repeats what names the step and its weights, and has a time of its own.
        named = {name: line[name] for name in line if name.startswith(PREFIX)} if is_validation(line) else line
        numbers = {name: float(value) for name, value in named.items() if isinstance(value, (int, float))}
        values.setdefault(int(line["step"] or 0), {}).update(numbers)
    for step, numbers in values.items():
        numbers.pop("step", None)
        yield pb.StepMetrics(step=step, values=numbers)
