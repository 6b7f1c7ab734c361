"""Decides which groups without a learning signal are replaced by new ones (dynamic sampling, DAPO, 2503.14476).

A step of 4 groups may replace up to 4 x (max_sample_batches - 1). Example with 2 batches at most, in a synchronous run:

    started        ended without variance    replaced    kept
    0, 1, 2, 3     1, 2, 3                   1, 2, 3     0
    4, 5, 6        4, 6                      4           5, 6 (four were replaced, so 6 stays)
    7              7                                     7

The step trains groups 0, 5, 6 and 7, of which the algorithm leaves 6 and 7 out of the loss.
"""

from services.trainer.rollouts.group import Group


class DynamicSampling:
    """Collects finished groups without variance, and replaces them until the step's limit is reached.

    In lockstep, groups that start together decode in one batch, and the batch decides the rounding. So in a synchronous
    run replacements start together, once every group before them has ended: which groups they are, and which of them
    share a batch, then follows from rewards alone and not from the order in which groups finish.

    Args:
        limit: groups that may be replaced in each step; 0: none.
        in_waves: whether the run is synchronous.
    """

    def __init__(self, limit: int, in_waves: bool) -> None:
        self._limit = limit
        self._in_waves = in_waves
        self._idle: list[Group] = []  # ended without variance, not decided
        self._replaced: list[int] = []  # in this step

    @property
    def untrained(self) -> list[int]:
        """Ids of groups that a resumed run must start again besides those that run or wait."""
        # A synchronous run that is resumed within a step repeats it from its first group: the same groups start
        # together, are replaced, and are followed by the same ones. Otherwise a replaced group needs no repetition.
        return [group.prompt.group_id for group in self._idle] + (self._replaced if self._in_waves else [])

    def takes(self, group: Group) -> bool:
        """Take a finished group if it may be replaced; else it is trained."""
        if not self._limit or group.has_variance:
            return False
        self._idle.append(group)
        return True

    def decide(self, others_run: bool) -> tuple[list[Group], list[Group]]:
        """Return the groups that are trained all the same, and those that are replaced.

        Args:
            others_run: whether groups still run or are about to start.
        """
        if not self._idle or (self._in_waves and others_run):
            return [], []
        left = self._limit - len(self._replaced)
        idle = sorted(self._idle, key=lambda group: group.prompt.group_id)
        self._idle = []
        self._replaced += [group.prompt.group_id for group in idle[:left]]
        return idle[left:], idle[:left]

    def reset(self) -> None:
        """Forget the groups of the step in progress."""
        self._idle, self._replaced = [], []

    def end_step(self) -> int:
        """Return how many groups were replaced since the last step, and begin the next one."""
        count = len(self._replaced)
        self._replaced = []
        return count
