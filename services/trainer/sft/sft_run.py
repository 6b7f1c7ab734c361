"""Runs supervised training in a run folder: rows, steps, metrics, checkpoints that resume to the same bits, export."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import verify_input
from searchrl.storage.durable_files import explain_disk_full
from searchrl.tokenization.model_files import (
    check_model_files,
    check_vocabulary,
    context_window,
    prompting_hash,
)
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.algorithms.base import UpdateReport
from services.trainer.algorithms.sft import SftReport, SftRun
from services.trainer.checkpoints.checkpoint_store import Checkpoint, CheckpointStore
from services.trainer.learner.device import describe_adapter
from services.trainer.learner.model_folder import fingerprint_folder
from services.trainer.runs.run_folder import RunFolder, is_finished, write_model_manifest
from services.trainer.runs.run_identity import check_identity
from services.trainer.runs.step_summary import summarize_update
from services.trainer.sft.learners import SavedLearner, open_learner
from services.trainer.sft.settings import SftConfig
from services.trainer.sft.token_rows import TokenRows, read_token_rows
from services.trainer.trackers.base import RunEnd, TrackedStep, TrackerContext
from services.trainer.trackers.build import build_trackers
from services.trainer.trackers.tracker_thread import TrackerThread, close_trackers

logger = logging.getLogger(__name__)
LINE_SECONDS = 5.0
"""Between lines of progress: often enough to follow a run, and a run of hours stays readable."""


class Stopped(Exception):
    """The run was asked to stop, and has saved its last step."""


@dataclass(slots=True)
class StopRequest:
    """Set by a signal; the running step is finished and saved."""

    is_set: bool = False


def read_data(config: SftConfig) -> TokenRows:
    """Check the model folder as far as it needs no weights, and read and tokenize every row.

    Raises:
        ConfigurationError: the model or the data cannot be used.
    """
    if not config.model.is_dir():
        raise ConfigurationError(f"there is no model folder {config.model}")
    verify_input(config.model)
    check_model_files(config.model)
    check_vocabulary(config.model, ModelTokenizer.from_folder(config.model).vocab_size)
    window = context_window(config.model)
    if config.max_tokens is not None and window is not None and config.max_tokens > window:
        raise ConfigurationError(f"max_tokens is {config.max_tokens}, but the model's context has {window} tokens")
    return read_token_rows(config.data, config.model, config.max_tokens or window, config.trained_messages)


def describe_identity(config: SftConfig, data: TokenRows) -> dict[str, str]:
    """Return what must not change between a checkpoint and its resume, by its name in messages."""
    training = config.training
    return {
        "rows": data.fingerprint,
        "model": prompting_hash(config.model),
        "starting weights": fingerprint_folder(config.model),
        "seed": str(config.seed),
        "dtype": config.learner.dtype,
        "adapter": describe_adapter(config.learner.adapter),
        "optimizer": training.optim.kind,
        # the schedule's end, the order of the rows, and the loss of a batch follow from these
        "epochs": f"{training.epochs:g}",
        "batches": f"{training.batch_rows} rows, {training.bucket_batches} sorted together",
        "loss": f"mean over {training.mean_over}, environment weight {training.environment_weight:g}",
    }


def train(config: SftConfig, data: TokenRows, stop: StopRequest, *, resume: bool) -> bool:
    """Train to the last step and export the model, or until a stop; return whether the run is finished.

    Raises:
        ConfigurationError: the model, the device, a tracker or the checkpoint cannot be used.
        services.trainer.learner.trained_model.TrainingDiverged: too many steps in a row had no finite gradients.
    """
    total_steps = config.training.total_steps(len(data.rows))
    if resume and is_finished(config.output, total_steps):
        logger.info("run %s is finished, all %d steps; its folder is %s", config.name, total_steps, config.output)
        return True
    logger.info("%s; %d steps", data.describe(), total_steps)
    context = TrackerContext(config.name, config.output, config.model_dump(mode="json"))
    trackers = build_trackers(config.logging, context)
    learner = open_learner(config)
    end = RunEnd.FAILED
    try:
        records = _Records(config, RunFolder(config.output), data, learner, trackers, stop, total_steps=total_steps)
        is_complete = _train(config, data, learner, records, resume=resume)
        end = RunEnd.FINISHED if is_complete else RunEnd.STOPPED
        return is_complete
    finally:
        close_trackers(trackers, end)
        learner.close()


def _train(config: SftConfig, data: TokenRows, learner: SavedLearner, records: "_Records", *, resume: bool) -> bool:
    run = SftRun(learner, data.rows, config.training, config.seed)
    folder = records.folder
    records.open(resume)
    try:
        run.run(on_step=records.record)
    except Stopped:
        logger.info("stopped after step %d of %d; the same command continues", learner.steps, run.total_steps)
        return False
    records.save(run.total_steps)
    with explain_disk_full(f"the model in {folder.final}", "free some space and resume"):
        learner.export(folder.final)
        write_model_manifest(folder.final, config.name, run.total_steps, fingerprint_folder(folder.final))
    logger.info("wrote %s after %d steps on %s", folder.final, run.total_steps, data.describe())
    return True


@dataclass(slots=True)
class _Records:
    """Writes each step's line and checkpoints, gives it to the trackers, and reports progress."""

    config: SftConfig
    folder: RunFolder
    data: TokenRows
    learner: SavedLearner
    trackers: Sequence[TrackerThread]
    stop: StopRequest
    total_steps: int
    store: CheckpointStore = field(init=False)
    identity: Mapping[str, str] = field(init=False)
    saved_step: int = -1
    first_step: int = 0
    started: float = 0.0
    last_step_end: float = 0.0
    last_line: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.store = CheckpointStore(self.folder.checkpoints, self.config.checkpoints.keep)
        self.identity = describe_identity(self.config, self.data)

    def open(self, resume: bool) -> None:
        """Restore the newest checkpoint if ``resume``; write nothing before everything is checked."""
        checkpoint = self._newest_checkpoint() if resume else None
        if checkpoint is not None:
            self.learner.load(checkpoint.folder)
        self.first_step = self.learner.steps
        config_text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if resume:
            self.folder.truncate_after(self.first_step)
            self.folder.write_config(config_text)
        else:
            self.folder.create(config_text)
        if checkpoint is not None:
            self.store.discard_after(checkpoint.step)
            self.saved_step = checkpoint.step
            logger.info("continuing after step %d of %d", checkpoint.step, self.total_steps)
        for tracker in self.trackers:
            tracker.start(self.first_step)
        self.started = self.last_step_end = time.monotonic()

    def _newest_checkpoint(self) -> Checkpoint | None:
        checkpoint = self.store.newest_intact()
        if checkpoint is not None:
            check_identity(checkpoint, self.identity)
        return checkpoint

    def record(self, report: SftReport) -> None:
        """Record a step, and save if that is due.

        Raises:
            Stopped: a stop was requested.
        """
        done = self.learner.steps
        now = time.monotonic()
        seconds, self.last_step_end = now - self.last_step_end, now
        self.tokens += report.tokens
        metrics = summarize_update(UpdateReport(report.loss, (report.optim,)))
        line = {
            "step": done,
            "total_steps": self.total_steps,
            "rows": report.rows,
            "tokens": report.tokens,
            **{name: round(value, 6) for name, value in metrics.items()},
            "seconds": round(seconds, 4),
            "time": round(time.time(), 3),
        }
        if not report.optim.skipped:  # a skipped step is repeated, and each step has one line
            with explain_disk_full(f"the records of step {done} in {self.folder.path}", "free some space and resume"):
                self.folder.append(line)
            for tracker in self.trackers:
                tracker.record(TrackedStep(done, line, time.time()))
        if now - self.last_line > LINE_SECONDS or done == self.total_steps:
            self._log(report, done, now)
        every = self.config.checkpoints.every
        if self.stop.is_set or (every and done % every == 0):
            self.save(done)
        if self.stop.is_set:
            raise Stopped

    def _log(self, report: SftReport, done: int, now: float) -> None:
        self.last_line = now
        seconds = max(now - self.started, 1e-9)
        left = seconds / max(done - self.first_step, 1) * (self.total_steps - done)
        logger.info(
            "step %d of %d: loss %.4f, gradient norm %.3f, %.0f tokens/s, %.0f s left",
            done, self.total_steps, report.loss.loss, report.optim.grad_norm, self.tokens / seconds, left,
        )  # fmt: skip

    def save(self, step: int) -> None:
        """Write a checkpoint, unless this step has one."""
        if step != self.saved_step:
            self.store.save(step, self.learner.save, {"identity": dict(self.identity)})
            self.saved_step = step
            self.last_step_end = time.monotonic()
