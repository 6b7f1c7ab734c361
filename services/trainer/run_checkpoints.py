"""Saves the checkpoints of a run, each with the data position and with what a resumed run must match."""

from collections.abc import Mapping, Sequence

from searchrl.errors import ConfigurationError
from services.trainer.checkpoints.checkpoint_store import Checkpoint, CheckpointStore
from services.trainer.checkpoints.checkpoint_writer import CheckpointSeconds, CheckpointWriter
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.orchestrator import Orchestrator, OrchestratorState
from services.trainer.runs.run_events import Rollback
from services.trainer.runs.run_identity import check_identity
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import RunState
from services.trainer.runs.trouble_detector import GoodSteps


class RunCheckpoints:
    """The checkpoints of one run.

    ``identity`` names what must not change between a checkpoint and its resume; the training loop adds what the
    services report about themselves. ``rollbacks`` is the number of those before the next checkpoint, and ``to_keep``
    names the checkpoints that the next rollback may need.
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
        self.rollbacks = 0
        self.to_keep: Sequence[GoodSteps] = ()

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
            "rollbacks": self.rollbacks,
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
        await self._writer.finish()  # so that it is among those to choose from
        found = [self._find_good(good) for good in self.to_keep]
        await self._writer.save(state.step, metadata, record, [step for step in found if step is not None])

    async def finish_write(self) -> None:
        """Wait for the checkpoint that is being written, if any.

        Raises:
            Exception: what its write raised.
        """
        await self._writer.finish()

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

    def newest(self, rollback: Rollback | None = None) -> Checkpoint | None:
        """Return the newest intact checkpoint of this run.

        Args:
            rollback: the last one.

        Raises:
            ConfigurationError: it belongs to other data or another model.
        """
        checkpoint = self._store.newest_intact()
        # The process may have been killed after it recorded the rollback, and before it removed the checkpoints that
        # the rollback left behind. Those know one rollback less.
        if (
            checkpoint is not None
            and rollback is not None
            and checkpoint.step > rollback.to_step
            and checkpoint.metadata.get("rollbacks", 0) < self.rollbacks
        ):
            checkpoint = self._store.newest_intact(rollback.to_step)
        if checkpoint is not None:
            check_identity(checkpoint, self.identity)
        return checkpoint

    def newest_good(self, good: GoodSteps) -> Checkpoint | None:
        """Return the newest intact checkpoint of steps that are good; None if there is none."""
        return self._store.newest_intact(good.surely) or self._store.newest_intact(good.probably)

    def _find_good(self, good: GoodSteps) -> int | None:
        """Return the step that ``newest_good`` returns if all checkpoints are intact."""
        steps = self._store.steps()
        candidates = ([step for step in steps if step <= bound] for bound in (good.surely, good.probably))
        return next((found[-1] for found in candidates if found), None)

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
