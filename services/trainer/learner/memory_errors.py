"""Explains out-of-memory errors of a GPU: what did not fit, and which settings to change."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from searchrl.errors import ConfigurationError
from services.trainer.learner.settings import LearnerSettings
from services.trainer.learner.train_batch import TrainRow


@contextmanager
def explain_memory_errors(what: str, advice: str) -> Iterator[None]:
    """Turn an error of the GPU's allocator into a message with advice.

    Raises:
        ConfigurationError: the block ran out of the GPU's memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(f"{what} does not fit into the GPU's memory; {advice}") from error


def explain_pass(rows: Sequence[TrainRow], settings: LearnerSettings) -> AbstractContextManager[None]:
    """Explain memory errors of one pass of a micro-batch through a model.

    Raises:
        ConfigurationError: the pass ran out of the GPU's memory.
    """
    longest = max((len(row) for row in rows), default=0)
    what = f"a micro-batch of {len(rows)} rows of up to {longest} tokens"
    advice = (
        f"lower learner.token_budget (now {settings.token_budget}) or learner.logit_budget (now "
        f"{settings.logit_budget}), or recompute activations with learner.gradient_checkpointing"
    )
    return explain_memory_errors(what, advice)
