"""Runs the learner, the critic and the reference policy in one dedicated thread, beside the event loop.

The event loop only queues jobs and awaits their results; all models are loaded, trained and saved in that thread. Jobs
run in the order in which they were queued, so a publication after an update sees the updated weights without a lock.
"""

import shutil
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.errors import ConfigurationError, ErrorKind, ServiceError
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, JobThread
from searchrl.storage.durable_files import atomic_write
from searchrl.tokenization.model_files import read_json
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.algorithms import ALGORITHMS
from services.trainer.algorithms.base import Algorithm, StepRows, StepUpdate, update_step
from services.trainer.cluster.placement import RunPlacement
from services.trainer.learner.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from services.trainer.learner.learner_group import LearnerGroup, check_parts
from services.trainer.learner.ranks import ALONE, Ranks
from services.trainer.learner.reports import LogprobProbe, PublishedWeights
from services.trainer.learner.train_batch import probe_row
from services.trainer.learner.weight_files import PublishedFile
from services.trainer.rollouts.group import Group
from services.trainer.settings import RunConfig

if TYPE_CHECKING:
    from services.trainer.learner.ray_ranks import RayRanks

Result = TypeVar("Result")
OWNER = "learner"
PUBLISHED = "published"  # folder in the run folder with the newest weights, while the run has ranks
WEIGHTS_FILE = "weights.safetensors"
TOKEN_FILE = "token"
PROBE_TOKENS = 128
"""Enough for every change of the weights to show, and short enough to cost nothing."""
PROBE_TEXT = "Which company keeps its main office in the city where the author of the first printed atlas was born? "
CLOSE_SECONDS = 5.0  # only an update that hangs takes that long: otherwise the thread has nothing left to do


class LearnerThread:
    """Runs the learner's jobs, always in the same thread: torch keeps its number of threads per thread, and equal calls
    must give equal bits.

    After a job that fails unexpectedly, native panics included, the process is not ready; the failure is logged and
    counted.
    """

    def __init__(
        self,
        config: RunConfig,
        profile: SearcherProfile,
        placement: RunPlacement | None = None,
        *,
        health: Health | None = None,
        count: Callable[[], object] | None = None,
    ) -> None:
        # The first failure already ends readiness: a training job has one learner, and its failed update ends the run.
        self._jobs = JobThread[LearnerModels | RankedModels](
            FailureWatch(OWNER, health=health, count=count, not_ready_after=1),
            lambda: open_models(config, profile, placement),
        )
        self._opened: LearnerModels | RankedModels | None = None

    async def open(self) -> None:
        """Load the models.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used.
        """
        self._opened = await self.run(lambda models: models)

    async def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """Turn groups into a batch and train on it."""
        return await self.run(lambda models: models.update(groups, step))

    async def publish(self, version: int) -> PublishedWeights:
        """Return a copy of the policy's weights as ``version``."""
        return await self.run(lambda models: models.publish(version))

    async def capture(self) -> Callable[[Path], None]:
        """Copy what a bit-exact resume needs; the returned function writes the copy into a folder, in any thread.

        The next copy may be made once that is done.
        """
        return await self.run(lambda models: models.capture())

    async def save(self, save: Callable[[Callable[[Path], None]], Result]) -> Result:
        """Call ``save`` in the thread with the function that writes what a bit-exact resume needs into a folder."""
        return await self.run(lambda models: save(models.save))

    async def restore(self, folder: Path) -> None:
        """Continue from what ``save`` wrote."""
        await self.run(lambda models: models.load_state(folder))

    async def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates of the settings by ``factor`` from now on; it replaces an earlier factor."""
        await self.run(lambda models: models.scale_rates(factor))

    async def export(self, folder: Path) -> None:
        """Write a model folder, with the profile that the searcher was trained with."""
        await self.run(lambda models: models.export(folder))

    async def run(self, job: Callable[["LearnerModels | RankedModels"], Result]) -> Result:
        """Run ``job`` in the thread, after the jobs that were queued before.

        Raises:
            Exception: what the job raised; a native panic becomes an internal error.
        """
        try:
            return await self._jobs.call(job)
        except ServiceError as error:
            # The run must end with the original error, not with "internal error". An expected error has a cause too,
            # such as the one of Ray behind "a learner rank died", and explains more than that.
            if error.kind is ErrorKind.INTERNAL and isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise

    def close(self) -> None:
        """End the thread and the learner's other processes; an update that hangs is abandoned."""
        # First the thread, whose current job may still use the ranks. If that hangs, killing them is what ends it: a
        # rank in a collective would wait for its timeout.
        self._jobs.close(finish=False, timeout=CLOSE_SECONDS)
        if self._opened is not None:
            self._opened.close()


@dataclass(frozen=True, slots=True)
class LearnerModels:
    """The models of a run with the algorithm that updates them, or one rank's part; used in one thread only."""

    algorithm: Algorithm[Any]
    learners: LearnerGroup
    profile: SearcherProfile
    probe_ids: tuple[int, ...] = ()
    publishes_adapter: bool = False

    @classmethod
    def load(cls, config: RunConfig, profile: SearcherProfile, ranks: Ranks = ALONE) -> Self:
        """Load the models that the algorithm needs.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used.
        """
        settings = config.algorithm
        learners = LearnerGroup.from_folder(
            config.model,
            config.learner,
            config.seed,
            has_critic=settings.needs_critic,
            has_reference=settings.needs_reference,
            ranks=ranks,
        )
        probe_ids = find_probe_ids(config.model) if config.engine.needs_probe else ()
        return cls(_build_algorithm(config, profile), learners, profile, probe_ids, config.engine.takes_adapter)

    def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """Turn groups into a batch and train on it."""
        return self.train(self.algorithm.rows(groups, self.profile.temperature), step)

    def train(self, rows: StepRows, step: int) -> StepUpdate:
        """Train on the rows of a step."""
        return update_step(self.algorithm, self.learners, rows, step)

    def publish(self, version: int) -> PublishedWeights:
        """Return a copy of what the engine takes as ``version``, with the scores that it proves the weights by."""
        policy = self.learners.policy
        weights = policy.publish_adapter(version) if self.publishes_adapter else policy.publish(version)
        return replace(weights, probe=self.probe())

    def probe(self) -> LogprobProbe | None:
        """Score the probe's tokens under the current weights; None if the run's engine needs no probe."""
        if not self.probe_ids:
            return None
        (scores,) = self.learners.policy.logprobs([probe_row(self.probe_ids)])
        return LogprobProbe(self.probe_ids, tuple(map(float, scores[1:])))

    def save(self, folder: Path) -> None:
        """Write everything that a bit-exact resume needs."""
        self.learners.save(folder)

    def capture(self) -> Callable[[Path], None]:
        """See ``LearnerThread.capture``."""
        self.learners.capture()
        return self._write_captured

    def _write_captured(self, folder: Path) -> None:
        self.learners.write_captured(folder)

    def load_state(self, folder: Path) -> None:
        """Continue from what ``save`` wrote."""
        self.learners.load(folder)

    def scale_rates(self, factor: float) -> None:
        """Multiply all learning rates."""
        self.learners.scale_rates(factor)

    def export(self, folder: Path) -> None:
        """Write a model folder with the profile."""
        self.learners.policy.export(folder)
        atomic_write(folder / PROFILE_FILE, self.profile.to_json())

    def close(self) -> None:
        """There is nothing to end in this process."""


class RankedModels:
    """The models sharded over Ray actors. Each method runs the same method of ``LearnerModels`` in every rank.

    Weights travel through files in the run folder, which the trainer and all ranks must see.
    """

    def __init__(self, config: RunConfig, profile: SearcherProfile, actors: "RayRanks") -> None:
        self._algorithm = _build_algorithm(config, profile)
        self._profile = profile
        self._actors = actors
        self._published = config.output / PUBLISHED
        self._publishes_adapter = config.engine.takes_adapter

    @classmethod
    def start(cls, config: RunConfig, profile: SearcherProfile, placement: RunPlacement | None = None) -> Self:
        """Start the ranks, and load each one's part of the models.

        Raises:
            searchrl.errors.ConfigurationError: a folder or the device cannot be used, or a rank has another disk.
            searchrl.errors.Unavailable: the ranks could not be started.
        """
        from services.trainer.learner.ray_ranks import RayRanks  # Ray takes seconds to import

        # an actor's working directory may be another one
        config = config.model_copy(update={"model": config.model.resolve(), "output": config.output.resolve()})
        shutil.rmtree(config.output / PUBLISHED, ignore_errors=True)  # of a process that was killed
        (config.output / PUBLISHED).mkdir(parents=True)
        token = uuid.uuid4().hex
        (config.output / PUBLISHED / TOKEN_FILE).write_text(token)

        def build(ranks: Ranks) -> LearnerModels:
            check_shared_disk(config.output / PUBLISHED / TOKEN_FILE, token, ranks)
            return LearnerModels.load(config, profile, ranks)

        return cls(config, profile, RayRanks.start(config.learner, build, placement))

    def update(self, groups: Sequence[Group], step: int) -> StepUpdate:
        """See ``LearnerModels.update``; the result is the same on every rank."""
        rows = self._algorithm.rows(groups, self._profile.temperature)
        return self._actors.run(LearnerModels.train, rows, step)[0]

    def publish(self, version: int) -> PublishedWeights:
        """See ``LearnerModels.publish``; the tensors are read from a file, which the next publication removes."""
        folder, config = self._published / f"version-{version}", None
        folder.mkdir(exist_ok=True)
        if self._publishes_adapter:
            file = folder / ADAPTER_FILE
            fingerprint = self._actors.run(_write_adapter, folder)[0]
            config = read_json(folder / ADAPTER_CONFIG_FILE)
        else:
            file = folder / WEIGHTS_FILE
            fingerprint = self._actors.run(_write_weights, file)[0]
        for older in self._published.glob("version-*"):
            if older != folder:
                shutil.rmtree(older)
        probe = self._actors.run(LearnerModels.probe)[0]
        return PublishedWeights(version, fingerprint, PublishedFile(file), probe, config)

    def save(self, folder: Path) -> None:
        """See ``LearnerModels.save``.

        Raises:
            searchrl.errors.ConfigurationError: files of a rank did not arrive here.
        """
        folder = folder.resolve()
        check_parts(folder, self._actors.run(_save_part, folder))

    def capture(self) -> Callable[[Path], None]:
        """See ``LearnerThread.capture``; each rank keeps its part of the copy."""
        self._actors.run(_capture_part)
        return self._write_captured

    def _write_captured(self, folder: Path) -> None:
        folder = folder.resolve()
        check_parts(folder, self._actors.run_beside(_write_captured_part, folder))

    def load_state(self, folder: Path) -> None:
        """See ``LearnerModels.load_state``."""
        self._actors.run(LearnerModels.load_state, folder.resolve())

    def scale_rates(self, factor: float) -> None:
        """See ``LearnerModels.scale_rates``."""
        self._actors.run(LearnerModels.scale_rates, factor)

    def export(self, folder: Path) -> None:
        """See ``LearnerModels.export``."""
        self._actors.run(_export_part, folder.resolve())
        atomic_write(folder / PROFILE_FILE, self._profile.to_json())

    def close(self) -> None:
        """End the ranks."""
        self._actors.close()
        shutil.rmtree(self._published, ignore_errors=True)


def open_models(
    config: RunConfig, profile: SearcherProfile, placement: RunPlacement | None = None
) -> LearnerModels | RankedModels:
    """Load the models of a run in this process, or over Ray actors if there are ranks."""
    if config.learner.ranks:
        return RankedModels.start(config, profile, placement)
    return LearnerModels.load(config, profile)


def check_shared_disk(file: Path, token: str, ranks: Ranks) -> None:
    """Check that this rank sees what the trainer has written.

    Raises:
        searchrl.errors.ConfigurationError: it does not.
    """
    if not file.is_file() or file.read_text() != token:
        raise ConfigurationError(
            f"learner rank {ranks.rank} on {socket.gethostname()} does not see the run folder {file.parent.parent}: "
            "all ranks need the trainer's disk"
        )


def _build_algorithm(config: RunConfig, profile: SearcherProfile) -> Algorithm[Any]:
    algorithm, _ = ALGORITHMS[config.algorithm.kind]
    return algorithm(config.algorithm, config.update, profile.limits.max_sampled_tokens)


# What a rank does with its part of the models.
def _write_weights(models: LearnerModels, file: Path) -> str:
    return models.learners.policy.write_weights(file)


def _write_adapter(models: LearnerModels, folder: Path) -> str:
    return models.learners.policy.write_adapter(folder)


def _export_part(models: LearnerModels, folder: Path) -> None:
    models.learners.policy.export(folder)


def _save_part(models: LearnerModels, folder: Path) -> dict[str, int]:
    return models.learners.save_part(folder)


def _capture_part(models: LearnerModels) -> None:
    models.learners.capture()


def _write_captured_part(models: LearnerModels, folder: Path) -> dict[str, int]:
    return models.learners.write_captured(folder)


def find_probe_ids(model: Path) -> tuple[int, ...]:
    """Return tokens of an ordinary prompt in the model's own form."""
    tokenizer = ModelTokenizer.from_folder(model)
    return tuple(tokenizer.render_prompt(PROBE_TEXT)[:PROBE_TOKENS])
