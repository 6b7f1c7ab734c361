"""A rollout worker whose rollouts finish on command, with scripted outcomes."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from searchrl.domain.trajectory import Outcome, Reward, TokenKind, Trajectory
from services.trainer.rollouts.group import Rollout
from services.trainer.rollouts.task_source import PromptGroup

Key = tuple[int, int]


class ScriptedWorker:
    """Stands in for ``RolloutWorker``.

    ``held`` rollouts wait for ``release``. ``outcomes`` holds scripted outcomes by group id and rollout index, used in
    order; after them the reward is the rollout's index. Tokens have the version that was current when it started.
    """

    def __init__(self, held: Iterable[Key] = ()) -> None:
        self.version = 0
        self.outcomes: dict[Key, list[Outcome]] = {}
        self.started: list[Key] = []
        self.stages: dict[str, str] = {}
        self._held = {key: asyncio.Event() for key in held}

    def release(self, *keys: Key) -> None:
        for key in keys:
            self._held[key].set()

    def prepare(self, prompts: Sequence[PromptGroup], group_size: int) -> None:
        """Do nothing: no rollouts of earlier processes exist."""

    async def run_rollout(self, prompt: PromptGroup, rollout_index: int, on_generated: Callable[[], None]) -> Rollout:
        key = (prompt.group_id, rollout_index)
        version = self.version
        self.started.append(key)
        await asyncio.sleep(0)
        if key in self._held:
            await self._held[key].wait()
        on_generated()
        scripted = self.outcomes.get(key)
        outcome = scripted.pop(0) if scripted else Reward(float(rollout_index), {"correct": float(rollout_index)})
        return Rollout(rollout_index, trajectory_of(prompt.question.id, version), outcome)


def trajectory_of(question_id: str, version: int = 0, tokens: int = 3, stop_reason: str = "completed") -> Trajectory:
    """Return a trajectory of two given tokens and ``tokens`` sampled ones."""
    trajectory = Trajectory(question_id, stop_reason=stop_reason)
    trajectory.tokens.append_given([5, 6], TokenKind.PROMPT)
    ids = list(range(7, 7 + tokens))
    trajectory.tokens.append_sampled(ids, [-0.5] * tokens, [version] * tokens, [int(TokenKind.ACTION)] * tokens)
    return trajectory


class RecordingSessions:
    """Records which rollouts have an open session."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.most_live = 0

    def open_session(self, rollout_id: str) -> None:
        self.live.add(rollout_id)
        self.most_live = max(self.most_live, len(self.live))

    def close_session(self, rollout_id: str) -> None:
        self.live.discard(rollout_id)


class CountingObserver:
    """Counts groups by state and rollouts by outcome."""

    def __init__(self) -> None:
        self.groups: list[str] = []
        self.rollouts: list[str] = []

    def record_rollout(self, rollout: Rollout) -> None:
        self.rollouts.append(type(rollout.outcome).__name__)

    def record_group(self, state: str) -> None:
        self.groups.append(state)
