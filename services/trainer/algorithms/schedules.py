"""Computes the learning rate's factor at an optimizer step."""

import math

from services.trainer.algorithms.settings import ScheduleSettings


def schedule_factor(settings: ScheduleSettings, step: int) -> float:
    """Return the factor of the base rate for the step with index ``step``, counted from 0.

    The warm-up reaches 1 at its last step: (step + 1) / warmup_steps.
    """
    factor = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.kind == "constant" or settings.total_steps is None:
        return factor
    progress = min(1.0, step / settings.total_steps)
    if settings.kind == "linear":
        return factor * max(settings.final_fraction, 1.0 - progress)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return factor * (settings.final_fraction + (1.0 - settings.final_fraction) * cosine)
