"""Shows a run in TensorBoard: a curve for each number, and sampled trajectories as text."""

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from searchrl.errors import ConfigurationError
from services.trainer.trackers.base import RunEnd, Sample, TrackedStep, TrackerContext

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorboardTracker:
    """Writes event files into ``tensorboard/`` of the run folder."""

    def __init__(self, context: TrackerContext) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigurationError("logging.trackers names tensorboard, and the package tensorboard is not installed")
        self._folder = context.folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def open(self, after_step: int) -> None:
        """See ``Tracker``."""
        from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

        if self._writer is not None:
            # The writer's own thread ends with its first failure, a full disk for example, and closing raises it again.
            with contextlib.suppress(Exception):
                self._writer.close()
        # With purge_step TensorBoard hides the events from this step on that an earlier process wrote before it was
        # killed: the resumed run repeats them.
        self._writer = SummaryWriter(str(self._folder), purge_step=after_step + 1)

    def record(self, step: TrackedStep) -> None:
        """See ``Tracker``."""
        assert self._writer is not None
        for name, value in step.numbers.items():
            self._writer.add_scalar(name, value, step.step)
        for number, sample in enumerate(step.samples, start=1):
            self._writer.add_text(f"samples/{number}", _to_markdown(sample), step.step)
        self._writer.flush()

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``."""
        if self._writer is not None:
            self._writer.close()


def _to_markdown(sample: Sample) -> str:
    reward = "no reward" if sample.reward is None else f"reward {sample.reward:g}"
    parts = [f"**{sample.question}**", f"{sample.outcome}, {reward}"]
    # Indented by four columns, a turn is shown as it is: its tags are not taken for HTML.
    parts += ["    " + turn.replace("\n", "\n    ") for turn in sample.turns]
    parts += ["\n".join(f"- {document}" for document in sample.documents)] if sample.documents else []
    return "\n\n".join([*parts, f"answer: {sample.answer}"] if sample.answer else parts)
