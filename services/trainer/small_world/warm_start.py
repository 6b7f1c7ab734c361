"""Make the small world's warm start: ``python -m services.trainer.small_world.warm_start --output DIR ...``."""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING

from searchrl.agent.types import Searcher
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.clients.service_client import read_key
from searchrl.datasets.question_file import read_training_questions
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.processes import Interrupted, exit_on_sigterm
from searchrl.storage.artifact_manifest import Artifact, verify_folder, verify_input, write_artifact
from searchrl.storage.durable_files import content_key
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.small_world.untrained_model import SMALL_WORLD_PROFILE, write_untrained_model

if TYPE_CHECKING:
    from services.trainer.algorithms.sft import SftReport, SftSettings, TokenDemonstration
    from services.trainer.learner.learner import Learner

DEMONSTRATIONS = 150_000  # of the model that ships with the package
EXPORT_SECONDS = 180.0
"""Between exports, and with ``--checkpoints`` between saves: a process that is killed loses at most this much training,
and each export pauses training."""
STEPS_PER_LINE = 100  # steps per line of the log
SERVED_DTYPE = "bfloat16"  # half the size of the float32 weights that are trained; the package ships this model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """The inputs of a warm start, and where its result goes.

    Attributes:
        output: model folder to write; rewritten every few minutes, so an interrupted run leaves a usable model.
        questions: training questions of small worlds, as ``searchrl small-world`` writes them.
        retriever: address of a retriever that serves these worlds' corpus.
        demonstrations: number of scripted rollouts; each is trained on once.
        seed: of the weights, the scripts and the order of training.
        checkpoints: where training is saved, so that the same warm start continues after a stop; None: it starts again.
        key_file: the retriever's API key.
    """

    output: Path
    questions: Path
    retriever: str
    demonstrations: int = DEMONSTRATIONS
    seed: int = 0
    checkpoints: Path | None = None
    key_file: Path | None = None

    def identity(self) -> dict[str, str | int]:
        """What the model depends on, apart from the retriever's corpus; reads the complete question file."""
        return {"questions": verify_input(self.questions), "demonstrations": self.demonstrations, "seed": self.seed}


def make_warm_start(job: WarmStart) -> None:
    """Write an untrained model, gather demonstrations through the retriever, and imitate them for one epoch.

    A finished model of the same questions and settings is kept.

    Raises:
        ConfigurationError: the questions cannot be used, there are too few demonstrations for one batch, or the
            checkpoint is that of another warm start.
        ServiceError: the retriever failed.
    """
    key = content_key(job.identity())
    finished = verify_folder(job.output)
    if finished is not None and finished.key == key:
        logger.info("%s is done", job.output)
        return
    if finished is not None:
        raise ConfigurationError(f"{job.output} holds another model: choose another output, or remove it")
    job.output.mkdir(parents=True, exist_ok=True)
    # not in the output: an interrupted start may have left a trained model there, which stays until the next export
    with TemporaryDirectory(prefix="untrained-") as name:
        untrained = Path(name)
        write_untrained_model(untrained, job.seed)
        demonstrations = asyncio.run(_gather_from_retriever(job, untrained))
        tokens = sum(len(demonstration.token_ids) for demonstration in demonstrations)
        logger.info("training on %d demonstrations of %d tokens", len(demonstrations), tokens)
        imitate(job, untrained, demonstrations)
    # last: a folder without a manifest counts as unfinished, and the next start trains it to the end
    write_artifact(job.output, Artifact("model", key=key, metadata={"demonstrations": job.demonstrations}))


async def _gather_from_retriever(job: WarmStart, untrained: Path) -> "list[TokenDemonstration]":
    client = RetrieverClient(job.retriever, key=read_key(job.key_file))
    try:
        return await gather(job, untrained, client)
    finally:
        await client.close()


async def gather(job: WarmStart, untrained: Path, searcher: Searcher) -> "list[TokenDemonstration]":
    """Return the demonstrations as sequences of the untrained model's tokens, in a fixed order."""
    # Heavy imports, here and below, wait for valid arguments.
    from services.trainer.small_world.scripted_demonstrations import scripted_demonstrations, tokenize_demonstration

    questions = read_training_questions(job.questions).questions
    tokenizer = ModelTokenizer.of_searcher(untrained)
    protocol = SMALL_WORLD_PROFILE.build_protocol()
    (end_id,) = tokenizer.eos_ids  # exactly one, so that it is clear what a demonstration has to end with
    scripts = scripted_demonstrations(
        questions, job.demonstrations, searcher, SMALL_WORLD_PROFILE.limits.top_k, job.seed
    )
    return [tokenize_demonstration(script, protocol, tokenizer, end_id) async for script in scripts]


def imitate(job: WarmStart, untrained: Path, demonstrations: "Sequence[TokenDemonstration]") -> None:
    """Train the untrained model on the demonstrations, and write the result to ``job.output``.

    Raises:
        ConfigurationError: there are too few demonstrations, or the checkpoint is that of another warm start.
    """
    from services.trainer.algorithms.sft import SftRun
    from services.trainer.learner.device import LearnerSettings
    from services.trainer.learner.learner import Learner

    settings = _training_settings()
    if len(demonstrations) < settings.batch_rows:
        raise ConfigurationError(
            f"a warm start needs at least {settings.batch_rows} demonstrations, got {len(demonstrations)}"
        )
    learner = Learner.from_folder(untrained, LearnerSettings(), job.seed)
    run = SftRun(learner, demonstrations, settings, job.seed)
    checkpoints = _Checkpoints(job.checkpoints, job.identity()) if job.checkpoints is not None else None
    if checkpoints is not None and checkpoints.restore(learner):
        logger.info("continuing after step %d of %d", learner.steps, run.total_steps)
    progress = _Progress(learner, job.output, checkpoints)
    # from here on SIGTERM must not end the process in the middle of a step: the running step is finished and saved
    before = signal.signal(signal.SIGTERM, progress.ask_to_stop)
    try:
        run.run(on_step=progress.report)
    finally:
        # back to the handler that unwinds at once: the export below replaces its files atomically
        signal.signal(signal.SIGTERM, before)
    learner.export(job.output, SERVED_DTYPE)
    logger.info("wrote %s", job.output)


def _training_settings() -> "SftSettings":
    """A new model learns to read its context as well, and takes larger steps than one that was trained before."""
    from services.trainer.algorithms.sft import SftOptimSettings, SftSettings

    return SftSettings(
        mean_over="data_set",
        environment_weight=1.0,
        # in the small world, a step of Muon was worth about 1.6 steps of AdamW alone
        optim=SftOptimSettings(kind="muon", learning_rate=4e-3, muon_learning_rate=0.025, betas=(0.9, 0.98)),
        warmup_steps=30,
        final_fraction=0.05,
    )


class _Checkpoints:
    """Checkpoints that only the warm start of the same questions and settings continues from."""

    def __init__(self, folder: Path, identity: Mapping[str, str | int]) -> None:
        self._store = CheckpointStore(folder, keep=1)
        self._identity = identity

    def restore(self, learner: "Learner") -> bool:
        """Load the newest checkpoint; return False if there is none.

        Raises:
            ConfigurationError: it is that of another warm start.
        """
        checkpoint = self._store.newest_intact()
        if checkpoint is None:
            return False
        different = [name for name, value in self._identity.items() if checkpoint.metadata.get(name) != value]
        if different:
            raise ConfigurationError(
                f"cannot continue from {checkpoint.folder}, which was saved with other settings "
                f"({', '.join(different)}): use the same, choose another folder for --checkpoints, or remove this one"
            )
        learner.load(checkpoint.folder)
        return True

    def save(self, step: int, learner: "Learner") -> None:
        self._store.save(step, learner.save, self._identity)


class _Progress:
    """Logs progress, exports the model every few minutes, and saves before the process is stopped."""

    def __init__(self, learner: "Learner", output: Path, checkpoints: _Checkpoints | None) -> None:
        self._learner = learner
        self._output = output
        self._checkpoints = checkpoints
        self._stopping = False
        self._started = self._exported = time.monotonic()
        self._restored_steps = learner.steps
        self._tokens = 0

    def ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        """Stop after the running step."""
        # Python runs a signal handler in the main thread, between two instructions of the step: saving here would save
        # weights of which some are updated and some are not.
        self._stopping = True

    def report(self, step: "SftReport") -> None:
        self._tokens += step.tokens
        now = time.monotonic()
        done = step.step + 1
        if done % STEPS_PER_LINE == 0:
            seconds = now - self._started
            logger.info(
                "step %d of %d: %.3f nats per action token, %.3f per other token, %.0f tokens/s, %.0f s left",
                done, step.total_steps, step.action_nll, step.environment_nll, self._tokens / seconds,
                seconds / (done - self._restored_steps) * (step.total_steps - done),
            )  # fmt: skip
        if self._stopping or now - self._exported > EXPORT_SECONDS:
            self._learner.export(self._output, SERVED_DTYPE)
            if self._checkpoints is not None:
                self._checkpoints.save(done, self._learner)
            self._exported = now
        if self._stopping:
            logger.info("stopped after step %d of %d", done, step.total_steps)
            raise Interrupted


def parse_arguments(argv: Sequence[str]) -> WarmStart:
    """Read the command line; exit with code 2 if it is invalid."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.small_world.warm_start", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--questions", type=Path, required=True, help="train.jsonl of 'searchrl small-world'")
    parser.add_argument("--retriever", default="127.0.0.1:9090", help="host:port of a retriever with that corpus")
    parser.add_argument("--demonstrations", type=int, default=DEMONSTRATIONS, help="scripted rollouts to imitate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, help="folder to save in, and to continue from")
    parser.add_argument("--key-file", type=Path, help="file with the retriever's API key")
    return WarmStart(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the retriever failed, 2 unusable input, 143 stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    job = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        make_warm_start(job)
    except ConfigurationError as error:
        logger.error("%s", error)
        return 2
    except ServiceError as error:
        logger.error("the retriever at %s failed: %s", job.retriever, error)
        return 1
    return 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
