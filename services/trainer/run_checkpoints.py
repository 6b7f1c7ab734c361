"""Saves the checkpoints of a run, each with the data position and with what a resumed run must match."""

from collections.abc import Mapping

from searchrl.errors import ConfigurationError
from services.trainer.checkpoints.checkpoint_store import Checkpoint, CheckpointStore
from services.trainer.checkpoints.checkpoint_writer import CheckpointSeconds, CheckpointWriter
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.orchestrator import Orchestrator, OrchestratorState
from services.trainer.runs.run_identity import check_identity
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import RunState


class RunCheckpoints:
    """The checkpoints of one run.

    ``identity`` names what must not change between a checkpoint and its resume; the training loop adds what the
    services report about themselves.
    """

    def __init__(
        self,
        store: CheckpointStore,
        writer: CheckpointWriter,
        orchestrator: Orchestrator,
        finished: FinishedRollouts,
        run_logger: RunLogger,
        state: RunState,
        identity: Mapping[str, str],
    ) -> None:
        self._store = store
        self._writer = writer
        self._orchestrator = orchestrator
        self._finished = finished
        self._run_logger = run_logger
        self._state = state
        self.identity = dict(identity)

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written.

        Raises:
            Exception: what the last write raised.
        """
        return self._writer.is_writing()

    async def save(self) -> None:
        """Save the step that was trained last, unless its checkpoint is on disk already, or is being written.

        Raises:
            Exception: what this write or the one before raised.
        """
        state, queue = self._state, self._orchestrator.state()
        if state.step in (state.saved_step, self._writer.step):
            return
        metadata = {
            "fingerprint": state.fingerprint,
            "identity": self.identity,
            "orchestrator": {
                "next_group_id": queue.next_group_id,
                "untrained": list(queue.untrained),
                "left_out": dict(queue.left_out),
                "curriculum": dict(queue.curriculum),
            },
        }

        def record(checkpoint: Checkpoint, seconds: CheckpointSeconds) -> None:
            self._run_logger.record_checkpoint(seconds.blocking, seconds.background)
            state.record_checkpoint(checkpoint.folder, checkpoint.step)
            self._finished.keep_only(queue.is_to_be_trained)

        # The queue was read before this await. Meanwhile rollouts continue, and a group may be drawn that the
        # checkpoint does not name: its id is not below ``next_group_id``, so a resumed run draws it again.
        await self._writer.save(state.step, metadata, record)

    async def finish(self) -> None:
        """Have the checkpoint of the step that was trained last on disk, and answer those who requested it.

        Raises:
            Exception: what its write raised.
        """
        await self.save()
        await self._writer.finish()
        self._state.answer_checkpoint()

    async def close(self) -> None:
        """Wait for the checkpoint that is being written, if any; a failure is logged."""
        await self._writer.close()

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint of this run.

        Raises:
            ConfigurationError: it belongs to other data or another model.
        """
        checkpoint = self._store.newest_intact()
        if checkpoint is not None:
            check_identity(checkpoint, self.identity)
        return checkpoint

    def restore_position(self, checkpoint: Checkpoint, fingerprint: str) -> None:
        """Set the run back to the step and the data position of a checkpoint, whose weights the learner has loaded.

        Args:
            fingerprint: of the weights that the learner published after the load.

        Raises:
            ConfigurationError: these are not the weights that were saved.
        """
        if checkpoint.metadata["fingerprint"] != fingerprint:
            raise ConfigurationError(
                f"the weights restored from {checkpoint.folder} are not those that were saved there"
            )
        queue = checkpoint.metadata["orchestrator"]
        left_out = tuple(queue.get("left_out", {}).items())
        position = queue["next_group_id"], tuple(queue["untrained"])
        self._orchestrator.restore(OrchestratorState(*position, left_out, queue.get("curriculum", {})))
        self._state.step = checkpoint.step
        self._state.record_checkpoint(checkpoint.folder, checkpoint.step)

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: the run will train them again."""
        self._store.discard_after(step)
