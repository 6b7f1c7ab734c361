"""Writes a step's numbers as TensorBoard events."""

from pathlib import Path

from services.trainer.runs.run_folder import StepLine


class TensorboardLog:
    """Writes every number of a step as a scalar; opens its event file with the first step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = None

    def write(self, line: StepLine, step: int) -> None:
        """Write one step and flush."""
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, float(value), step)
        self._writer.flush()
