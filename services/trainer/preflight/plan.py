"""Describes what a run will take: its batches, and its memory by part, with what each figure follows from."""

from collections.abc import Iterator
from typing import NamedTuple

from searchrl.platform.capacity import size_text
from services.trainer.engines.torch_engine import TorchEngineSettings
from services.trainer.preflight.sizes import RunSizes
from services.trainer.settings import RunConfig


class PlanRow(NamedTuple):
    """One line of the table; a heading has no figure."""

    part: str
    figure: str = ""
    reason: str = ""


class BatchGrid(NamedTuple):
    """How a run's rollouts are divided.

    Attributes:
        rollouts: of one training step.
        optimizer_steps: of the complete run.
        samples: rollouts of the complete run.
        passes: how often each question is asked.
    """

    rollouts: int
    optimizer_steps: int
    samples: int
    passes: float


def count_batches(config: RunConfig, questions: int) -> BatchGrid:
    """Count the rollouts and optimizer steps of a run with this number of questions."""
    groups, update = config.rollouts.groups_per_step, config.update
    rollouts = groups * config.rollouts.group_size
    per_step = update.mini_batches * update.epochs
    return BatchGrid(rollouts, config.steps * per_step, config.steps * rollouts, config.steps * groups / questions)


def describe_batches(config: RunConfig, questions: int) -> str:
    """The batches as one line."""
    grid = count_batches(config, questions)
    return (
        f"{grid.samples:,} rollouts and {grid.optimizer_steps:,} optimizer steps in {config.steps:,} training steps; "
        f"each question is asked {grid.passes:,.1f} times"
    )


def describe_run(config: RunConfig, sizes: RunSizes, parameters: int, context_tokens: int, questions: int) -> str:
    """A table of the run's batches and memory, with what each figure follows from."""
    rows = [
        *_batch_rows(config, questions),
        PlanRow("context", f"{context_tokens:,}", "tokens of the longest rollout, by the limits in searcher.json"),
        *_rank_rows(config, sizes, parameters),
        *_process_rows(config, sizes),
    ]
    return "".join(f"{_format(row)}\n" for row in rows)


def _batch_rows(config: RunConfig, questions: int) -> Iterator[PlanRow]:
    grid, rollouts, update = count_batches(config, questions), config.rollouts, config.update
    batches = config.algorithm.sample_batches
    more = f", up to {batches} times as many by dynamic sampling" if batches > 1 else ""
    yield PlanRow("batches")
    yield PlanRow(
        "rollouts",
        f"{grid.rollouts:,}",
        f"{rollouts.groups_per_step} questions x {rollouts.group_size}, in each step{more}",
    )
    yield PlanRow(
        "mini-batch",
        f"{grid.rollouts / update.mini_batches:,.0f}",
        f"rollouts of one optimizer step: 1/{update.mini_batches} of a step's (update.mini_batches)",
    )
    yield PlanRow(
        "optimizer",
        f"{grid.optimizer_steps:,}",
        f"steps: {config.steps} x {update.mini_batches} mini-batches x {update.epochs} epochs",
    )
    yield PlanRow(
        "samples", f"{grid.samples:,}", f"rollouts in all; each of {questions:,} questions {grid.passes:,.1f} times"
    )


def _rank_rows(config: RunConfig, sizes: RunSizes, parameters: int) -> Iterator[PlanRow]:
    learner = config.learner
    ranks = max(1, learner.ranks)
    models = "policy and critic" if config.algorithm.needs_critic else "policy"
    share = f", a share of 1/{ranks}" if ranks > 1 else ""
    trained = "what is trained" if learner.adapter.kind == "none" else "the adapter"
    whose = f"each of {ranks} learner ranks" if ranks > 1 else "the learner"
    where = ", most of it in main memory between passes" if sizes.offloaded else ""
    yield PlanRow(f"memory of {whose} on {learner.device}{where}")
    yield PlanRow("weights", size_text(sizes.weights), f"{models}, {parameters / 1e6:,.1f} million parameters{share}")
    yield PlanRow("gradients", size_text(sizes.gradients), f"float32, 4 bytes per parameter of {trained}{share}")
    yield PlanRow("moments", size_text(sizes.moments), f"{_describe_moments(config)} of {trained}{share}")
    if sizes.reference:
        yield PlanRow("reference", size_text(sizes.reference), f"weights of the first policy, for the KL term{share}")
    if sizes.gathered:
        yield PlanRow("layers", size_text(sizes.gathered), f"complete while they run, in {learner.dtype}")
    yield PlanRow(
        "activations",
        size_text(sizes.activations),
        f"{learner.token_budget:,} tokens (learner.token_budget)",
    )
    recomputed = (
        "one recomputed layer and its gradients" if learner.gradient_checkpointing else "gradients of one layer"
    )
    yield PlanRow("backward", size_text(sizes.backward), f"{recomputed}, after the logits are freed")
    yield PlanRow("logits", size_text(sizes.logits), f"at most {learner.logit_budget:,} at once (learner.logit_budget)")
    if sizes.stepping:
        yield PlanRow("step", size_text(sizes.stepping), "embeddings' gradient, optimizer; activations are freed")
    yield PlanRow("peak", size_text(sizes.learner), "the most at once on the device")
    yield from _captured_rows(sizes, ranks)


def _captured_rows(sizes: RunSizes, ranks: int) -> Iterator[PlanRow]:
    if sizes.captured:
        whose = f"in main memory of each of {ranks} ranks" if ranks > 1 else "in main memory"
        yield PlanRow("captured", size_text(sizes.captured), f"{whose} while a checkpoint is written")


def _describe_moments(config: RunConfig) -> str:
    kinds = {config.update.optim.kind, *(optim.kind for optim in config.algorithm.optimizers.values())}
    if "muon" in kinds:
        return "Muon's one, 4 bytes per parameter of matrices, and AdamW's two, 8 bytes per other parameter,"
    return "two of AdamW, 8 bytes per parameter"


def _process_rows(config: RunConfig, sizes: RunSizes) -> Iterator[PlanRow]:
    engine = config.engine
    yield PlanRow("main memory of the trainer's process")
    if isinstance(engine, TorchEngineSettings):
        yield PlanRow("engine", size_text(sizes.engine), "weights with which rollouts are sampled, float32")
        cache = size_text(engine.slots * sizes.slot)
        yield PlanRow("KV cache", cache, f"{engine.slots} rollouts at once (engine.slots)")
    else:
        yield PlanRow("engine", "none", "vLLM's servers hold weights and KV cache, and check their memory at the start")
    pushed = "the adapter" if engine.takes_adapter else "the weights"
    yield PlanRow("push buffers", size_text(sizes.push), f"two copies of {pushed} while new ones are published")
    yield PlanRow("disk")
    yield PlanRow(
        "checkpoints",
        size_text(sizes.disk),
        f"{config.checkpoints.keep} (checkpoints.keep), one in writing, final model",
    )


def _format(row: PlanRow) -> str:
    return f"  {row.part:<13}{row.figure:>10}  {row.reason}" if row.figure or row.reason else row.part
