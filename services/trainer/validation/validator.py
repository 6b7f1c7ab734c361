"""Runs one validation: every question once, greedily, under one policy version."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress, islice, takewhile
from pathlib import Path

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Unscorable
from searchrl.errors import ConfigurationError, Unavailable
from services.trainer.engines.base import EngineOutOfDate, RolloutEngine
from services.trainer.rollouts.circuit_breaker import CircuitBreaker
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.group import Rollout, RolloutSettings
from services.trainer.rollouts.refusals import LeftOutQuestions
from services.trainer.rollouts.rollout_worker import RewardScorer, RolloutWorker
from services.trainer.rollouts.task_source import PromptGroup
from services.trainer.validation.questions import fingerprint_question_set
from services.trainer.validation.scored_questions import ScoredQuestion, ScoredQuestions, read_scored

FORMAT = "1"  # of a row; files with other rows are not read
ONE = 0  # index of the rollout of a question: greedy decoding would repeat a second one


def validation_name(prompt: PromptGroup, rollout_index: int) -> str:
    """Return the id of a validation's rollout in the engines, where it must differ from those of the training."""
    return f"v{prompt.group_id:09d}-r{rollout_index:04d}"


class Validator:
    """Answers and scores the validation questions.

    As many as ``in_flight`` run at once; the next ones start when all of them have ended. In lockstep these are the
    batches, so that the composition of a batch depends on the order of the questions alone. (After a resume a batch may
    be smaller. That can change a figure only if two tokens are equally likely up to rounding.)

    Args:
        worker: samples greedily, keeps its trajectories in ``finished``, and names rollouts by ``validation_name``.
        rewards: scores what the worker samples; apart from the training's, which forgets its answers after each step.
        folder: of the run; it gets one file for each validated step.
        baselines: file with whose results the reward compares these questions, if it does.
        needs_correct: the metric is the share of right answers, so that every reward has to say whether one is.
        on_rollout: called for each rollout that ended.
        on_pending: called with the number of questions that are not scored yet.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        worker: RolloutWorker,
        rewards: RewardScorer,
        engine: RolloutEngine,
        finished: FinishedRollouts,
        breaker: CircuitBreaker,
        settings: RolloutSettings,
        in_flight: int,
        folder: Path,
        *,
        baselines: Path | None = None,
        needs_correct: bool = False,
        on_rollout: Callable[[Rollout], None] = lambda _rollout: None,
        on_pending: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._prompts = [PromptGroup(number, 0, question) for number, question in enumerate(questions)]
        self._worker = worker
        self._rewards = rewards
        self._engine = engine
        self._finished = finished
        self._breaker = breaker
        self._settings = settings
        self._in_flight = in_flight
        self._folder = folder
        self._on_rollout = on_rollout
        self._on_pending = on_pending
        self._needs_correct = needs_correct
        self.question_set = fingerprint_question_set(questions, baselines)

    def open(self, identity: Mapping[str, str]) -> None:
        """Find the unscored trajectories of an earlier process of this run."""
        self._finished.open({**identity, "validation": self.question_set})

    def close(self, *, discard: bool) -> None:
        """End the thread that keeps trajectories; ``discard`` removes those of a run that is complete."""
        self._finished.close(discard=discard)

    async def run(self, step: int, version: int, fingerprint: str) -> ScoredQuestions:
        """Answer what is not scored yet, and return the rows of all questions.

        Raises:
            EngineOutOfDate: a token was sampled by another version.
            searchrl.errors.ConfigurationError: services refuse the run, or too many of its questions; or the rewards
                do not have what the metric needs.
            searchrl.errors.Unavailable: no rollout ended for ``stall_seconds``, or one failed in each of its starts.
        """
        scored = ScoredQuestions.open(self._file(step), {**self._belongs_to(), "weights": fingerprint})
        left_out = LeftOutQuestions(
            len(self._prompts), self._settings.max_unscorable, self._settings.unscorable_in_a_row
        )
        validation = _Validation(version, scored, left_out, self._needs_correct)
        validation.restore()
        self._finished.serve(version, fingerprint)
        self._rewards.start_step()
        waiting = iter([prompt for prompt in self._prompts if prompt.question.id not in scored.rows])
        self._report_pending(scored)
        while batch := list(islice(waiting, self._in_flight)):
            await self._run_batch(batch, validation)
        self._finished.keep_only(lambda _group_id: False)
        return scored

    def values_of(self, step: int, metric: str) -> dict[str, float]:
        """Return the metric of an earlier validation on the same questions, by question id; none if it is lost."""
        kept = ScoredQuestions(self._file(step), {})
        kept.rows = read_scored(self._file(step), self._belongs_to())
        return kept.values(metric)

    def _file(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}.jsonl"

    def _belongs_to(self) -> dict[str, str]:
        return {"format": FORMAT, "questions": self.question_set}

    async def _run_batch(self, batch: Sequence[PromptGroup], validation: "_Validation") -> None:
        restarts: Counter[int] = Counter()
        waiting = list(batch)
        while waiting:
            await self._wait_until_closed()
            lost = await self._answer(waiting, validation)
            if not lost:
                return
            reason = next(iter(lost.values()))
            # The next start waits for a probe, so that one outage does not use up the restarts.
            self._breaker.open(reason)
            restarts.update(lost.keys())
            if max(restarts.values()) > self._settings.max_restarts:
                starts = self._settings.max_restarts + 1
                message = f"a validation question failed in each of {starts} starts: {reason}"
                raise Unavailable(message, retry_after_seconds=None)
            waiting = [prompt for prompt in waiting if prompt.group_id in lost]

    async def _answer(self, prompts: Sequence[PromptGroup], validation: "_Validation") -> dict[int, str]:
        """Answer and score these questions; return the numbers of those that infrastructure lost, with the reasons."""
        self._worker.prepare(prompts, 1)
        for prompt in prompts:  # all sessions first, so that they start in the same lockstep batch
            self._engine.open_session(validation_name(prompt, ONE))
        tasks = {asyncio.ensure_future(self._answer_one(prompt, validation)): prompt for prompt in prompts}
        try:
            await self._wait_for_all(tasks)
        finally:
            # What rollouts use is closed after the validation has ended, so none may outlive it.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for prompt in prompts:
                self._engine.close_session(validation_name(prompt, ONE))  # of a task that was cancelled before it ran
        return {prompt.group_id: reason for task, prompt in tasks.items() if (reason := task.result()) is not None}

    async def _answer_one(self, prompt: PromptGroup, validation: "_Validation") -> str | None:
        """Answer and score a question; return the reason if infrastructure lost it."""
        name = validation_name(prompt, ONE)
        rollout = await self._worker.run_rollout(prompt, ONE, lambda: self._engine.close_session(name))
        self._on_rollout(rollout)
        lost = rollout.outcome.reason if isinstance(rollout.outcome, InfraFailure) else None
        self._breaker.record(lost is not None, lost or "")
        if lost is None:
            validation.add(prompt, rollout)
            self._finished.keep_only(lambda group_id: self._prompts[group_id].question.id not in validation.scored.rows)
            self._report_pending(validation.scored)
        return lost

    def _report_pending(self, scored: ScoredQuestions) -> None:
        self._on_pending(len(self._prompts) - len(scored.rows))

    async def _wait_for_all(self, tasks: Iterable["asyncio.Future[str | None]"]) -> None:
        """Raises the first error of a task, or Unavailable if none ends for ``stall_seconds``."""
        running = set(tasks)
        while running:
            limit = self._settings.stall_seconds or None
            ended, running = await asyncio.wait(running, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not ended:
                waits = ", ".join(
                    f"{count} for {stage}" for stage, count in Counter(self._worker.stages.values()).items()
                )
                raise self._stalled(f"rollouts wait: {waits or 'none'}")
            for task in ended:
                task.result()

    async def _wait_until_closed(self) -> None:
        try:
            async with asyncio.timeout(self._settings.stall_seconds or None):
                await self._breaker.wait_until_closed()
        except TimeoutError as error:
            raise self._stalled(f"the services fail: {self._breaker.reason}") from error

    def _stalled(self, why: str) -> Unavailable:
        seconds = self._settings.stall_seconds
        return Unavailable(f"no rollout of the validation ended for {seconds:g} s: {why}", retry_after_seconds=None)


class _Validation:
    """What the rollouts of one validation share."""

    def __init__(self, version: int, scored: ScoredQuestions, left_out: LeftOutQuestions, needs_correct: bool) -> None:
        self.scored = scored
        self._version = version
        self._left_out = left_out
        self._needs_correct = needs_correct

    def restore(self) -> None:
        """Continue with the rows of an earlier process: its refusals count as if there had been no other process.

        Raises:
            searchrl.errors.ConfigurationError: a reward does not say what the metric needs.
        """
        rows = self.scored.rows.values()
        for row in rows:
            self._check(row)
        # in the order of the file, which is that in which they ended
        last_refused = list(takewhile(lambda row: row.reward is None, reversed(rows)))
        reasons = ((row.question_id, row.reason) for row in rows if row.reward is None)
        self._left_out.restore(reasons, in_a_row=len(last_refused))

    def add(self, prompt: PromptGroup, rollout: Rollout) -> None:
        """Add the row of a rollout.

        Raises:
            EngineOutOfDate: one of its tokens was sampled by another version.
            searchrl.errors.ConfigurationError: too many questions are refused, or the reward does not say what the
                metric needs.
        """
        question_id = prompt.question.id
        if rollout.trajectory is not None:
            tokens = rollout.trajectory.tokens
            others = set(compress(tokens.versions, tokens.mask)) - {self._version}
            if others:
                raise EngineOutOfDate(
                    f"the validation of version {self._version} has tokens of version {min(others)} (question "
                    f"{question_id!r}): the engine does not serve what it was given"
                )
        row = ScoredQuestion.of(question_id, rollout.outcome, rollout.trajectory)
        self._check(row)
        # Before the row is kept: with one refusal too many on the disk, a resumed run would not find that it is.
        if isinstance(rollout.outcome, Unscorable):
            self._left_out.add(question_id, rollout.outcome.reason)
        else:
            self._left_out.record_scored()
        self.scored.add(row)

    def _check(self, row: ScoredQuestion) -> None:
        if self._needs_correct and row.reward is not None and row.success is None:
            raise ConfigurationError(
                f"validation.metric is success, and the reward of question {row.question_id!r} has no part 'correct' "
                "that says whether the answer is right: set validation.metric to reward, or return that part"
            )
