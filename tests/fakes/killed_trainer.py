"""A trainer that kills itself: ``python -m tests.fakes.killed_trainer INSTANT STEP ARGUMENTS...``.

It is the real program in which one function, when called for STEP, sends SIGKILL to its own process instead of
returning. A kill after a fixed time would hit the critical line only occasionally; this one always does.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from services.trainer import command_line as trainer
from services.trainer.checkpoints import checkpoint_store
from services.trainer.learner.learner import Learner
from services.trainer.learner_thread import LearnerThread
from services.trainer.rollouts.rollout_worker import RewardScorer
from services.trainer.runs.run_folder import RunFolder

played_steps = 1


def die(*_: object, **__: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def arm(owner: Any, name: str, condition: Any, before: bool = True) -> None:
    """Die before or after a call for which ``condition(*arguments)`` holds."""
    original = getattr(owner, name)

    def armed(*arguments: Any, **named: Any) -> Any:
        if not condition(*arguments, **named):
            return original(*arguments, **named)
        if not before:
            original(*arguments, **named)
        return die()

    setattr(owner, name, armed)


def counts_steps() -> None:
    """Keep ``played_steps`` one ahead of the learner's finished updates: the number of the step in progress."""
    publish = LearnerThread.publish

    async def counted(self: LearnerThread, version: int) -> Any:
        global played_steps
        played_steps = version + 1
        return await publish(self, version)

    LearnerThread.publish = counted  # type: ignore[method-assign]


def arm_instant(instant: str, step: int) -> None:
    counts_steps()
    here = lambda *_, **__: played_steps == step  # noqa: E731
    match instant:
        case "rollouts":  # some rollouts of the step are finished, the others are running
            arm(RewardScorer, "score", here)
        case "update":  # the gradients of the first mini-batch are computed, the optimizer step is not taken
            arm(Learner, "optim_step", here)
        case "publish":  # the learner has the new weights, the engine has the old ones
            arm(LearnerThread, "publish", lambda _self, version: version == step)
        case "log":  # half of the step's line is written
            arm(RunFolder, "append", lambda folder, line: _write_half(folder, line) if line["step"] == step else False)
        case "checkpoint":  # the files are written, the manifest is being flushed
            arm(checkpoint_store, "fsync_path", lambda path: f"step_{step}.tmp" in Path(path).parts)
        case "rename":  # the checkpoint is complete, ``latest`` still points to the previous one
            arm(checkpoint_store.CheckpointStore, "_point_to", lambda _self, name: name == f"step_{step}")
        case _:
            raise SystemExit(f"unknown instant {instant}")


def _write_half(folder: RunFolder, line: object) -> bool:
    with folder.metrics.open("a") as file:
        file.write(str(line)[:20])
    return True


if __name__ == "__main__":
    arm_instant(sys.argv[1], int(sys.argv[2]))
    trainer.main(sys.argv[3:])
