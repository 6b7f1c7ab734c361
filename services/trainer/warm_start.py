"""Make the small world's warm start: ``python -m services.trainer.warm_start --output DIR --questions FILE``."""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.agent.ports import Searcher
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.data.question_files import read_questions
from services.trainer.data.scripted_demonstrations import scripted_demonstrations, tokenize_demonstration
from services.trainer.data.small_world_model import SMALL_WORLD_PROFILE, write_untrained_model
from services.trainer.learner.learner import Learner
from services.trainer.learner.settings import LearnerSettings
from services.trainer.learner.sft import Demonstration, SftReport, SftRun, SftSettings

EXPORT_SECONDS = 180.0
STEPS_PER_LINE = 100
SERVED_DTYPE = "bfloat16"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What to teach, and where to put the result.

    Attributes:
        output: model folder to write; rewritten every few minutes, so an interrupted run leaves a usable model.
        questions: training questions of small worlds, as ``searchrl small-world`` writes them.
        retriever: address of a retriever that serves these worlds' corpus.
        demonstrations: number of scripted rollouts; each is trained on once.
        seed: of the weights, the scripts and the order of training.
    """

    output: Path
    questions: Path
    retriever: str
    demonstrations: int = 150_000
    seed: int = 0


def make_warm_start(job: WarmStart) -> None:
    """Write an untrained model, gather demonstrations through the retriever, and imitate them for one epoch.

    Raises:
        ConfigurationError: the questions cannot be used, or there are too few demonstrations for one batch.
        ServiceError: the retriever failed.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    write_untrained_model(job.output, job.seed)
    demonstrations = asyncio.run(_gather_from_retriever(job))
    tokens = sum(len(demonstration.token_ids) for demonstration in demonstrations)
    logger.info("training on %d demonstrations of %d tokens", len(demonstrations), tokens)
    imitate(job, demonstrations)


async def _gather_from_retriever(job: WarmStart) -> list[Demonstration]:
    client = RetrieverClient(job.retriever)
    try:
        return await gather(job, client)
    finally:
        await client.close()


async def gather(job: WarmStart, searcher: Searcher) -> list[Demonstration]:
    """Demonstrations as token sequences, in a fixed order."""
    questions = read_questions(job.questions)
    tokenizer = ModelTokenizer.from_folder(job.output)
    protocol = SMALL_WORLD_PROFILE.build_protocol()
    (end_id,) = tokenizer.eos_ids
    scripts = scripted_demonstrations(
        questions, job.demonstrations, searcher, SMALL_WORLD_PROFILE.limits.top_k, job.seed
    )
    return [tokenize_demonstration(script, protocol, tokenizer, end_id) async for script in scripts]


def imitate(job: WarmStart, demonstrations: Sequence[Demonstration]) -> None:
    """Supervised training of the model in ``job.output``, which is replaced by the result."""
    learner = Learner.from_folder(job.output, LearnerSettings(), job.seed)
    run = SftRun(learner, demonstrations, SftSettings(seed=job.seed))
    progress = _Progress(learner, job.output)
    run.run(on_step=progress.report)
    learner.export(job.output, SERVED_DTYPE)
    logger.info("wrote %s", job.output)


class _Progress:
    """Logs every hundredth step and keeps the output folder up to date."""

    def __init__(self, learner: Learner, output: Path) -> None:
        self._learner = learner
        self._output = output
        self._started = self._exported = time.monotonic()
        self._tokens = 0

    def report(self, step: SftReport) -> None:
        self._tokens += step.tokens
        now = time.monotonic()
        done = step.step + 1
        if done % STEPS_PER_LINE == 0:
            seconds = now - self._started
            logger.info(
                "step %d of %d: %.3f nats per action token, %.3f per other token, %.0f tokens/s, %.0f s left",
                done, step.total_steps, step.action_nll, step.environment_nll, self._tokens / seconds,
                seconds / done * (step.total_steps - done),
            )  # fmt: skip
        if now - self._exported > EXPORT_SECONDS:
            self._learner.export(self._output, SERVED_DTYPE)
            self._exported = now


def parse_arguments(argv: Sequence[str]) -> WarmStart:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.warm_start", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--questions", type=Path, required=True, help="train.jsonl of 'searchrl small-world'")
    parser.add_argument("--retriever", default="127.0.0.1:9090", help="host:port of a retriever with that corpus")
    parser.add_argument("--demonstrations", type=int, default=150_000, help="scripted rollouts to imitate")
    parser.add_argument("--seed", type=int, default=0)
    return WarmStart(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the retriever failed, 2 unusable input."""
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
    sys.exit(main())
