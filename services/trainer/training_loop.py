"""Runs the training recipe from the first step to the last: rollouts, update, publication, log, checkpoint, validation.

Everything here runs in one event loop. The learner's work runs in the thread of ``LearnerThread``; meanwhile rollouts
continue in the orchestrator's tasks, as far as ``max_staleness`` allows.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from safetensors import SafetensorError

from searchrl.errors import OUTAGE_KINDS, ConfigurationError, ServiceError, Unavailable
from searchrl.platform.retry import retry_every
from searchrl.storage.durable_files import explain_disk_full
from services.trainer.algorithms.base import StepUpdate
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from services.trainer.engines.base import RolloutEngine, check_logprobs, push_weights
from services.trainer.learner.reports import PublishedWeights
from services.trainer.learner.trained_model import TrainingDiverged
from services.trainer.learner_thread import LearnerThread
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.group import Group
from services.trainer.rollouts.orchestrator import Orchestrator
from services.trainer.rollouts.rollout_worker import RewardScorer
from services.trainer.run_checkpoints import RunCheckpoints
from services.trainer.runs.run_events import find_rollbacks
from services.trainer.runs.run_folder import write_model_manifest
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import RunState
from services.trainer.runs.step_summary import StepTimer
from services.trainer.runs.stoppable_waits import StoppableWaits
from services.trainer.runs.trouble_detector import Trouble
from services.trainer.self_repair import SelfRepair
from services.trainer.settings import RunConfig
from services.trainer.trackers.base import RunEnd
from services.trainer.validation_schedule import ValidationSchedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunParts:
    """The components that the loop uses; the wiring builds them."""

    learner: LearnerThread
    engine: RolloutEngine
    orchestrator: Orchestrator
    rewards: RewardScorer
    finished: FinishedRollouts
    validation: ValidationSchedule
    store: CheckpointStore
    writer: CheckpointWriter
    run_logger: RunLogger
    identity: dict[str, str]
    pin_services: Callable[[], Awaitable[dict[str, str]]]


class TrainingLoop:
    """Trains step by step: rollouts, update, publication, log, checkpoint.

    ``identity`` names what must not change between a checkpoint and its resume: data set, tokenizer, model, and what
    the services report about themselves (index generation, frozen LLM, judge). The policy version is the number of
    updates, also of those that were rolled back: it never falls while the run continues.
    """

    def __init__(self, config: RunConfig, parts: RunParts, state: RunState) -> None:
        self._config = config
        self._state = state
        self._learner, self._engine = parts.learner, parts.engine
        self._orchestrator, self._rewards = parts.orchestrator, parts.rewards
        self._finished, self._validation = parts.finished, parts.validation
        self._run_logger = parts.run_logger
        self._checkpoints = RunCheckpoints(
            parts.store, parts.writer, parts.orchestrator, parts.finished, parts.run_logger, state, parts.identity
        )
        self._repair = SelfRepair(config, self._checkpoints)
        self._waits = StoppableWaits(state, parts.orchestrator.wait_for_outage)
        self._pin_services = parts.pin_services
        self._is_served = False  # whether the engine has the newest weights
        self._idle_steps = 0
        self._timer = StepTimer()  # log and checkpoint follow a step's line, so the next line has their times

    async def run(self, resume: bool) -> None:
        """Train to the last step, or until a stop is requested; save a checkpoint.

        A run that reached its last step, or that its validations ended, also exports its model.
        """
        end = RunEnd.FAILED
        try:
            await self._run(resume)
            end = RunEnd.FINISHED if self._state.completed else RunEnd.STOPPED
        finally:
            # In the order of use: rollouts call the engine and write finished trajectories, so they end first.
            # Trajectories that wait for the learner are kept, unless the run is complete and nothing will read them.
            await self._validation.cancel()
            await self._orchestrator.close()
            await self._engine.close()
            await self._checkpoints.close()
            self._learner.close()
            self._validation.close(discard=self._state.completed)
            self._finished.close(discard=self._is_trained)
            await self._run_logger.close(end)

    async def _run(self, resume: bool) -> None:
        state = self._state
        # First what depends on no service: an unusable model or device ends the run at once, not after a wait for
        # others.
        await self._learner.open()
        # The engine may take minutes to load its model.
        if not await self._waits.finish_before_stop(self._engine.start()) or not await self._ask_services():
            return
        await self._open(resume)
        while not self._is_trained and not state.stop_requested:
            await self._wait_while_paused()
            try:
                trouble = await self._train_step()
            except TrainingDiverged as error:
                trouble = self._repair.describe_divergence(state.step + 1, error)
            if trouble is not None:
                await self._roll_back(trouble)
        await self._checkpoints.finish()
        if self._is_trained and await self._validate_last():
            with explain_disk_full(
                f"the model in {self._run_logger.folder.final}", "free some space and resume", SafetensorError
            ):
                # The manifest is written last: a folder without one is not a finished model. A process that is killed
                # in here is resumed from the checkpoint of the last step, trains nothing and exports again.
                final = self._run_logger.folder.final
                await self._learner.export(final)
                await asyncio.to_thread(write_model_manifest, final, self._config.name, state.step, state.fingerprint)
                state.completed = True

    @property
    def _is_trained(self) -> bool:
        return self._state.step >= self._config.steps or self._validation.ends_run(self._state.step)

    async def _validate_last(self) -> bool:
        """Validate the last version; False if the run is to stop before that is done."""
        if not self._is_served and self._validation.is_due(self._state.step, last=True):
            return False  # the engine has older weights
        self._validation.start(self._state, last=True)
        return await self._finish_validation()

    async def _ask_services(self) -> bool:
        """Wait for the services and record their versions; False if a stop was requested meanwhile."""
        retries = retry_every(self._config.rollouts.circuit_breaker.probe_seconds, self._waits.sleep)
        try:
            return await retries.run(self._try_services)
        except ServiceError as error:  # a refusal: outages are retried without limit
            raise ConfigurationError(f"the services cannot serve this run: {error}") from error

    async def _try_services(self) -> bool:
        if self._state.stop_requested:
            return False
        try:
            self._checkpoints.identity |= await self._pin_services()
        except ServiceError as error:
            if error.kind in OUTAGE_KINDS:
                logger.warning("waiting for the services: %s", error)
            raise
        return True

    async def _open(self, resume: bool) -> None:
        """Restore the newest checkpoint if ``resume``, and serve the weights.

        Nothing is written before everything is checked: a refused resume changes nothing.
        """
        self._repair.open(find_rollbacks(self._run_logger.folder.events()) if resume else [])
        checkpoint = self._checkpoints.newest(self._repair.last) if resume else None
        if checkpoint is not None:
            await self._learner.restore(checkpoint.folder)
        await self._learner.scale_rates(self._repair.rate_factor)
        step = checkpoint.step if checkpoint is not None else self._state.step
        weights = await self._learner.publish(step + self._repair.abandoned_versions)
        if checkpoint is not None:
            # The fingerprint is computed by the publication, so the restored weights are compared here and not right
            # after the load.
            self._checkpoints.restore_position(checkpoint, weights.fingerprint)
        await self._push(weights)
        self._run_logger.open(self._state.step, resume)
        if checkpoint is not None:
            self._checkpoints.discard_after(checkpoint.step)
        self._repair.restore(self._run_logger.lines)
        self._validation.open(self._checkpoints.identity, self._run_logger.lines, self._state)
        self._finished.open(self._checkpoints.identity)
        self._finished.serve(weights.version, weights.fingerprint)
        self._finished.keep_only(self._orchestrator.state().is_to_be_trained)
        self._rewards.start_step()
        if self._validation.is_due(self._state.step):
            await self._checkpoints.save()  # each validated version has one
        if self._is_served and not self._is_trained:
            self._orchestrator.start(self._state.version)

    async def _roll_back(self, trouble: Trouble) -> None:
        """Continue from the last checkpoint from before the trouble, with lower learning rates.

        Raises:
            TrainingDiverged: there is none, or the run was rolled back too often.
        """
        state = self._state
        await self._checkpoints.finish_write()
        checkpoint = await asyncio.to_thread(self._repair.choose_checkpoint, trouble)  # reads every byte of it
        await self._validation.cancel()
        abandoned = await self._orchestrator.abandon()
        self._finished.keep_only(lambda _group_id: False)  # nothing that the abandoned versions sampled is trained
        rollback = self._repair.add(trouble, checkpoint.step, state.version + 1, abandoned)
        await self._learner.restore(checkpoint.folder)
        await self._learner.scale_rates(rollback.rate_factor)
        weights = await self._learner.publish(rollback.policy_version)
        self._checkpoints.restore_position(checkpoint, weights.fingerprint)
        # From here on the run is rolled back, also for a process that resumes it. The later checkpoints go afterwards:
        # without the record, a killed process would have lost them and start over with the old rate.
        await self._run_logger.record_rollback(rollback)
        self._checkpoints.discard_after(checkpoint.step)
        self._repair.restore(self._run_logger.lines)
        self._validation.restore(self._run_logger.lines, state)
        self._idle_steps, self._timer = 0, StepTimer()
        await self._push(weights)
        if self._is_served:
            self._finished.serve(weights.version, weights.fingerprint)
            self._rewards.start_step()
            self._orchestrator.start(state.version)

    async def _train_step(self) -> Trouble | None:
        """Train one step; return what requires a rollback, if the step shows it.

        Raises:
            TrainingDiverged: too many optimizer steps in a row had no finite gradients.
        """
        timer, state = self._timer, self._state
        # Its rollouts must not be in the lockstep batches of the step's, whose composition decides about rounding.
        if self._config.rollouts.max_staleness > 0:
            self._validation.start(state)
        with timer.phase("rollouts"):
            groups = await self._next_groups()
        if groups is None:
            return None
        self._validation.start(state)
        with timer.phase("update"):
            update = await self._update(groups)
        self._check_engine(update)
        self._check_learning(groups, update)
        if self._validation.is_running:
            with timer.phase("validation"):  # the time by which it is slower than the step
                if not await self._finish_validation():
                    # Nothing of this step is saved: the checkpoint is that of the validated version, from which a
                    # resumed run repeats the update and ends with the same weights.
                    return None
        # The engine gets the new weights before the orchestrator learns of them: in the other order, groups would start
        # that count as sampled by the new version and are sampled by the old one.
        trained_version = state.version
        state.step += 1
        with timer.phase("publish"):
            await self._publish()
        if self._is_served:  # else the run stops: it starts no more groups, and its checkpoint has these weights
            self._rewards.start_step()
            if not self._is_trained:  # nobody would train the groups, and the last validation would run beside them
                self._orchestrator.grant_step(state.version)
        self._timer = StepTimer()
        with self._timer.phase("log"):  # before the checkpoint: each step that a run can resume from has its line
            await self._run_logger.record(
                groups,
                update,
                trained_version,
                state,
                timer,
                self._orchestrator.replaced_groups,
                self._orchestrator.resting_questions,
            )
        # before the checkpoint: what is rolled back needs none
        if (trouble := self._repair.find_trouble(self._run_logger.lines)) is not None:
            return trouble
        with self._timer.phase("checkpoint"):
            if self._is_checkpoint_due():
                await self._checkpoints.save()
            elif not self._checkpoints.is_writing():  # else its resume still needs them
                self._finished.keep_only(self._orchestrator.state().is_to_be_trained)
        return None

    async def _update(self, groups: list[Group]) -> StepUpdate:
        limit = self._config.watchdog.update_seconds or None
        try:
            async with asyncio.timeout(limit):
                return await self._learner.update(groups, self._state.step + 1)
        except TimeoutError as error:
            # A thread cannot be interrupted: the run ends with this error, and ``close`` abandons the thread.
            message = (
                f"the update of step {self._state.step + 1} took more than {limit:g} s; the run waits for its learner"
            )
            raise Unavailable(message, retry_after_seconds=None) from error

    def _check_learning(self, groups: list[Group], update: StepUpdate) -> None:
        """Raises:
        ConfigurationError: there was no optimizer step for too many steps in a row.
        """
        steps = sum(not (step.skipped or step.is_idle) for step in update.report.optim)
        self._idle_steps = 0 if steps else self._idle_steps + 1
        limit = self._config.watchdog.idle_steps
        if limit and self._idle_steps >= limit:
            equal = sum(not group.has_variance for group in groups)
            usable = sum(group.usable for group in groups)
            raise ConfigurationError(
                f"no optimizer step for {self._idle_steps} steps: of the last {len(groups)} groups {equal} had equal "
                f"rewards, and {usable} rollouts could be trained; this searcher learns nothing from these questions, "
                "this reward and these limits"
            )

    async def _next_groups(self) -> list[Group] | None:
        """Wait for the groups of a step; None if the run is to stop and must not wait for them."""
        groups = asyncio.create_task(self._orchestrator.next_groups())
        return groups.result() if await self._waits.finish_unless_stopped(groups) else None

    async def _finish_validation(self) -> bool:
        """Wait for the validation in progress, if any; False if the run is to stop and must not wait for it."""
        if not self._validation.is_running:
            return True
        validated = asyncio.create_task(self._validation.wait())
        # The probe of the circuit breaker, for which the validation may wait, reports its errors to the orchestrator.
        failed = asyncio.create_task(self._orchestrator.raise_failure())
        return await self._waits.finish_unless_stopped(validated, failed)

    async def _publish(self) -> None:
        weights = await self._learner.publish(self._state.step + self._repair.abandoned_versions)
        await self._push(weights)
        if self._is_served:
            self._finished.serve(weights.version, weights.fingerprint)

    async def _push(self, weights: PublishedWeights) -> None:
        """Have the engine serve these weights, unless a stop is requested before it does.

        A push may wait for many minutes until lost servers are back, and a run that stops needs no engine.
        """
        self._is_served = not self._state.stop_requested and await self._waits.finish_before_stop(
            push_weights(self._engine, weights)
        )
        self._state.version, self._state.fingerprint = weights.version, weights.fingerprint

    def _check_engine(self, update: StepUpdate) -> None:
        # Only a synchronous run trains on tokens of the weights that the learner has: otherwise the two differ by the
        # updates in between, and the difference says nothing about the engine.
        if self._config.rollouts.max_staleness == 0:
            check_logprobs(update.logprob_mismatch, self._config.engine.logprob_tolerance, self._state.version)

    async def _wait_while_paused(self) -> None:
        while self._state.paused and not self._state.stop_requested:
            await self._serve_checkpoint_request()
            await self._state.wait_for_change()
        await self._serve_checkpoint_request()

    async def _serve_checkpoint_request(self) -> None:
        if self._state.checkpoint_wanted:
            await self._checkpoints.finish()

    def _is_checkpoint_due(self) -> bool:
        every, step = self._config.checkpoints.every, self._state.step
        # A validated version has one, so that it can be kept as the best, and a killed validation resumed.
        return (bool(every) and step % every == 0) or self._validation.is_due(step)
