"""Dispatches groups of rollouts, and hands finished groups to the learner within the staleness budget.

All of it runs in one event loop, so no lock is needed: every state change happens between two awaits. One task
dispatches, each running group is a task of its own, and the training loop awaits ``next_groups``. They wake each other
by two events: ``_changed`` (a group ended, or the run failed) and ``_dispatch_needed`` (there is budget).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from searchrl.domain.trajectory import NO_REWARD, InfraFailure, Unscorable
from searchrl.errors import Unavailable
from services.trainer.engines.base import RolloutEngine, check_sampled_version
from services.trainer.rollouts.circuit_breaker import CircuitBreaker
from services.trainer.rollouts.dynamic_sampling import DynamicSampling
from services.trainer.rollouts.group import Group, Rollout, RolloutSettings, sorted_by_id
from services.trainer.rollouts.refusals import LeftOutQuestions
from services.trainer.rollouts.rollout_worker import RolloutWorker, describe_waits, rollout_name
from services.trainer.rollouts.task_source import PromptGroup, TaskSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OrchestratorState:
    """What a resumed run needs: the next group, groups that were drawn and not trained, and questions left out.

    ``curriculum`` has the measured success of questions, as ``Curriculum.state``.
    """

    next_group_id: int
    untrained: tuple[int, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    curriculum: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def is_to_be_trained(self, group_id: int) -> bool:
        """Whether the group is still to be drawn, run or trained."""
        return group_id >= self.next_group_id or group_id in self.untrained


class Orchestrator:
    """Keeps groups of rollouts running, at most ``max_staleness`` policy versions ahead of the learner.

    Budget rule: until version v + 1 is published, at most (max_staleness + 1 + v - first version) x groups_per_step
    groups are started, not counting groups that are started again. ``start`` grants (max_staleness + 1) steps' worth of
    groups and each publication one more. For groups_per_step 4, max_staleness 1 and first version 0:

        event                 groups started in total    of them, trained   in flight or ready
        start, version 0      8                          0                  8
        version 1 published   12                         4                  8
        version 2 published   16                         8                  8

    The 8 groups of the last column are two steps' worth: while a step is trained, the groups of the next one run, and
    their oldest tokens are one version old when they are trained (``stale_groups`` decides about older ones). With
    staleness 0 the column is 4: a step's groups start together after the weights of the previous step are served, so
    results do not depend on timing.

    A group that is dropped as stale, or left with too few rewards, returns its unit of the budget and is started again;
    a group whose question is left out, or that dynamic sampling replaces, returns it, too, and the next question takes
    its place.

    Args:
        max_replaced: groups without variance that each step may replace by new ones.
        on_rollout: called for each rollout that ended.
        on_lost_group: called for each group that is not trained, with the reason: stale, underfilled, unscorable or
            replaced.
    """

    def __init__(
        self,
        source: TaskSource,
        worker: RolloutWorker,
        engine: RolloutEngine,
        settings: RolloutSettings,
        breaker: CircuitBreaker,
        *,
        max_replaced: int = 0,
        on_rollout: Callable[[Rollout], None] = lambda _rollout: None,
        on_lost_group: Callable[[str], None] = lambda _state: None,
    ) -> None:
        self._source = source
        self._worker = worker
        self._engine = engine
        self._settings = settings
        self._breaker = breaker
        breaker.on_error = self._fail
        self._on_rollout = on_rollout
        self._on_lost_group = on_lost_group
        self._version = 0
        self._budget = 0  # groups that may be started now
        self._again: list[int] = []
        self._restarts: Counter[int] = Counter()
        self._left_out = LeftOutQuestions(len(source), settings.max_unscorable, settings.unscorable_in_a_row)
        self._progress_at = time.monotonic()
        self._running: dict[int, tuple[int, asyncio.Task[None]]] = {}  # by group id: version at the start, task
        self._ready: list[Group] = []
        self._sampling = DynamicSampling(max_replaced, in_waves=settings.max_staleness == 0)
        self.replaced_groups = 0  # while the groups were gathered that ``next_groups`` returned last
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()  # for those who wait for something else than groups
        self._changed = asyncio.Event()
        self._dispatch_needed = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Groups whose rollouts run."""
        return len(self._running)

    @property
    def ready(self) -> int:
        """Finished groups that wait for the learner."""
        return len(self._ready)

    @property
    def resting_questions(self) -> int:
        """Questions that the curriculum lets rest."""
        return self._source.curriculum.resting

    def restore(self, state: OrchestratorState) -> None:
        """Continue from a checkpoint: groups that were not trained come first. Call before ``start``."""
        self._source.next_group_id = state.next_group_id
        self._again = sorted(state.untrained)
        self._left_out.restore(state.left_out)
        self._source.curriculum.restore(state.curriculum)

    def state(self) -> OrchestratorState:
        """Return what was drawn and not trained yet, for a checkpoint taken between two steps."""
        # Between two awaits a group that was drawn is in exactly one of four places: to start again, running, ready, or
        # with dynamic sampling. Groups that ``next_groups`` has handed over are in none, and between two steps they
        # have been trained.
        waiting = [group.prompt.group_id for group in self._ready]
        untrained = tuple(sorted([*self._again, *self._running, *waiting, *self._sampling.untrained]))
        left_out, curriculum = tuple(self._left_out.reasons.items()), self._source.curriculum.state()
        return OrchestratorState(self._source.next_group_id, untrained, left_out, curriculum)

    def start(self, version: int) -> None:
        """Start to dispatch with the policy of ``version``."""
        self._progress_at = time.monotonic()
        self._version = version
        self._budget = (self._settings.max_staleness + 1) * self._settings.groups_per_step
        self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch_while_closed())
        self._dispatcher.add_done_callback(self._record_error)

    def grant_step(self, version: int) -> None:
        """Grant another step's groups: the engines serve ``version`` from now on."""
        self._version = version
        self._budget += self._settings.groups_per_step
        self._wake()

    async def next_groups(self) -> list[Group]:
        """Wait for a step's groups and return them in the order of their ids.

        Raises:
            EngineOutOfDate: tokens come from weights that were replaced before their rollout started.
            ConfigurationError: services refuse the run, or too many of its questions.
            Unavailable: no rollout ended for ``stall_seconds``, or a group failed in each of its starts.
            Exception: a rollout, or its dispatch, raised an error that is not a failure of infrastructure.
        """
        self._progress_at = time.monotonic()  # until now the learner may have been training; that is no stall
        while True:
            if self._failure is not None:
                raise self._failure
            self._drop_stale()
            if len(self._ready) >= self._settings.groups_per_step and not self._must_wait():
                break
            # There is no await between the checks above and this line, so no change between them is lost.
            self._changed.clear()
            await self._wait_for_change()
        # oldest first: what waits longer would become stale
        in_order = sorted(self._ready, key=lambda group: (group.start_version, group.prompt.group_id))
        taken = in_order[: self._settings.groups_per_step]
        self._ready = in_order[self._settings.groups_per_step :]
        self.replaced_groups = self._sampling.end_step()
        for group in taken:
            self._measure(group)
        # Only here: a checkpoint between two steps must not know of groups that a resumed run will start again.
        self._source.curriculum.end_step()
        return sorted_by_id(taken)

    async def _wait_for_change(self) -> None:
        limit = self._settings.stall_seconds
        while not self._changed.is_set():
            left = self._progress_at + limit - time.monotonic() if limit else None
            if left is not None and left <= 0:
                cause = describe_waits(self._worker.stages, sorted(self._running))
                if self._breaker.is_open:
                    cause = f"dispatch is paused, {self._breaker.reason}"
                raise Unavailable(f"no rollout ended for {limit:g} s: {cause}", retry_after_seconds=None)
            try:
                async with asyncio.timeout(left):  # wait_for of Python 3.11 may swallow a cancellation
                    await self._changed.wait()
            except TimeoutError:
                continue  # a rollout may have ended meanwhile

    async def wait_for_outage(self) -> None:
        """Wait until dispatch is paused because services fail; return at once if it is paused already."""
        await self._breaker.wait_until_open()

    async def raise_failure(self) -> NoReturn:
        """Wait until something fails that ends the run, and raise it."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def close(self) -> None:
        """Cancel everything that runs."""
        await self._cancel_tasks()
        await self._breaker.stop()

    async def abandon(self) -> int:
        """Cancel and forget every group that was drawn and not trained, and return their number.

        ``restore`` and ``start`` follow. An open circuit stays open, and its probe goes on.
        """
        await self._cancel_tasks()
        for group_id in self._running:
            for rollout_index in range(self._settings.group_size):  # of a task that was cancelled before it ran
                self._engine.close_session(rollout_name(self._source.group(group_id), rollout_index))
        count = len(self.state().untrained)
        self._running.clear()
        self._ready.clear()
        self._restarts.clear()
        self._sampling.reset()
        self._again, self._budget, self._dispatcher = [], 0, None
        return count

    async def _cancel_tasks(self) -> None:
        tasks = [task for _, task in self._running.values()]
        tasks += [self._dispatcher] if self._dispatcher else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        self._changed.set()
        self._dispatch_needed.set()

    async def _dispatch_while_closed(self) -> None:
        while True:
            await self._breaker.wait_until_closed()
            self._dispatch()
            self._dispatch_needed.clear()  # nothing is lost: there is no await between the dispatch and this line
            await self._dispatch_needed.wait()

    def _dispatch(self) -> None:
        """Start as many groups as the budget allows; all sessions first, so that they start in the same batch."""
        prompts = [self._next_prompt() for _ in range(self._budget)]
        self._budget = 0
        self._worker.prepare(prompts, self._settings.group_size)
        for prompt in prompts:
            for rollout_index in range(self._settings.group_size):
                self._engine.open_session(rollout_name(prompt, rollout_index))
        for prompt in prompts:
            task = asyncio.get_running_loop().create_task(self._run_group(prompt, self._version))
            self._running[prompt.group_id] = (self._version, task)
            # If a rollout raises, its group stays in ``_running``, so that a checkpoint counts it as not trained.
            task.add_done_callback(self._record_error)

    def _next_prompt(self) -> PromptGroup:
        while True:
            prompt = self._source.group(self._again.pop(0)) if self._again else self._source.next()
            if prompt.question.id not in self._left_out:
                return prompt

    async def _run_group(self, prompt: PromptGroup, served: int) -> None:
        rollouts = await self._run_rollouts(prompt)
        group = Group(prompt, rollouts, self._settings.truncated == "mask")
        del self._running[prompt.group_id]
        if group.usable:
            check_sampled_version(group.oldest_version, served)
        if self._is_underfilled(group):
            self._give_up_or_start_again(group)
        else:
            self._left_out.record_scored()
            self._restarts.pop(prompt.group_id, None)
            self._accept(group)
        self._wake()

    def _accept(self, group: Group) -> None:
        """Hand a scored group to the learner, or replace it if it teaches nothing."""
        if not self._sampling.takes(group):
            self._ready.append(group)
        # A budget that is not spent yet is that of groups that start again or replace others: they will run.
        kept, replaced = self._sampling.decide(others_run=bool(self._running or self._budget))
        self._ready += kept
        self._budget += len(replaced)
        for lost in replaced:
            self._measure(lost)
            self._on_lost_group("replaced")

    def _measure(self, group: Group) -> None:
        self._source.curriculum.measure(group.prompt.group_id, group.prompt.question.id, group.successes)

    async def _run_rollouts(self, prompt: PromptGroup) -> list[Rollout]:
        tasks = [
            asyncio.ensure_future(self._run_rollout(prompt, rollout_index))
            for rollout_index in range(self._settings.group_size)
        ]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            # ``gather`` raises the first error and leaves the other rollouts running. They must have ended when the
            # group has: ``close`` knows groups only, and what rollouts use is closed after it. No TaskGroup, because
            # the run should end with the error itself and not with a group of errors.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _run_rollout(self, prompt: PromptGroup, rollout_index: int) -> Rollout:
        name = rollout_name(prompt, rollout_index)
        rollout = await self._worker.run_rollout(prompt, rollout_index, lambda: self._engine.close_session(name))
        self._progress_at = time.monotonic()
        self._breaker.record(isinstance(rollout.outcome, InfraFailure), getattr(rollout.outcome, "reason", ""))
        self._on_rollout(rollout)
        return rollout

    def _is_underfilled(self, group: Group) -> bool:
        """Whether too few members have a reward. Masked members have one: the same seeds would give the same again."""
        # Not ``group.usable``, which leaves masked members out.
        scored = sum(not isinstance(rollout.outcome, NO_REWARD) for rollout in group.rollouts)
        return scored < self._least

    @property
    def _least(self) -> int:
        # Algorithms that compare no rollouts may have groups of one, which must not wait for a second member.
        return min(self._settings.min_group, self._settings.group_size)

    def _give_up_or_start_again(self, group: Group) -> None:
        """Leave the question out if services refused too many rollouts; start again if an outage lost them.

        Raises:
            ConfigurationError: too many questions are left out.
            Unavailable: services failed this group in each of its starts.
        """
        refused = [rollout.outcome.reason for rollout in group.rollouts if isinstance(rollout.outcome, Unscorable)]
        # Too few would be scored even if every other rollout succeeded, because a new start meets the same refusals.
        # With groups of 8 and min_group 2 that is the case from 7 refusals on.
        if len(group.rollouts) - len(refused) < self._least:
            self._on_lost_group("unscorable")
            self._left_out.add(group.prompt.question.id, refused[0])
            self._budget += 1
            return
        lost = [rollout.outcome.reason for rollout in group.rollouts if isinstance(rollout.outcome, InfraFailure)]
        self._breaker.open(lost[0])  # the next start waits for a probe, so that one outage does not use up the restarts
        self._restarts[group.prompt.group_id] += 1
        if self._restarts[group.prompt.group_id] > self._settings.max_restarts:
            starts = self._restarts[group.prompt.group_id]
            message = f"group {group.prompt.name} failed in each of {starts} starts: {lost[0]}"
            raise Unavailable(message, retry_after_seconds=None)
        self._start_again(group, "underfilled")

    def _start_again(self, group: Group, state: str) -> None:
        logger.warning("group %s is %s and starts again", group.prompt.name, state)
        self._on_lost_group(state)
        self._again = sorted([*self._again, group.prompt.group_id])
        self._budget += 1

    def _drop_stale(self) -> None:
        if self._settings.stale_groups == "wait":
            return
        # With max_staleness 1 and the learner at version 5, tokens of version 4 are allowed: a group is dropped if its
        # oldest usable token has version 3.
        limit = self._version - self._settings.max_staleness
        stale = [group for group in self._ready if group.start_version < limit]
        if stale:
            self._ready = [group for group in self._ready if group.start_version >= limit]
            for group in stale:
                self._start_again(group, "stale")
            self._wake()

    def _must_wait(self) -> bool:
        """Whether a running group would become too old if the learner trained the next step without it."""
        if self._settings.stale_groups == "drop":
            return False
        # Example for max_staleness 1 at version 5: a group that started at version 4 still runs. If this step is
        # trained without it, the version becomes 6, and its tokens are 2 versions old. So the learner waits for it.
        limit = self._version - self._settings.max_staleness
        return any(version <= limit for version, _ in self._running.values())

    def _record_error(self, task: asyncio.Task[None]) -> None:
        # Nobody awaits these tasks before ``close``: without this callback an exception in one would go unnoticed until
        # the stall limit.
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # The first error is the cause; those after it are often its consequences. The dispatcher is not woken: nothing
        # more should start, and the training loop closes the rest when it raises the error.
        self._failure = self._failure or error
        self._failed.set()
        self._changed.set()
