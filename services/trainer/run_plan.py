"""Writes the plan that ``--dry-run`` prints: what a run would do."""

from services.trainer.rewards.build_reward import needs_generator
from services.trainer.run_config import RunConfig


def run_plan(config: RunConfig) -> str:
    """Describe the sizes, reward, algorithm and files of a run, one line each."""
    rollouts, update = config.rollouts, config.update
    per_step = rollouts.groups_per_step * rollouts.group_size
    optimizer_steps = update.mini_batches * update.epochs
    mode = (
        "strictly synchronous" if rollouts.max_staleness == 0 else f"at most {rollouts.max_staleness} versions behind"
    )
    lines = [
        f"run {config.name}: {config.steps} steps from {config.model}, seed {config.seed}",
        f"questions: {config.questions}",
        f"each step: {rollouts.groups_per_step} questions x {rollouts.group_size} rollouts = {per_step}, {mode}",
        f"reward: {_reward(config)}",
        f"algorithm: {config.algorithm.kind}, {optimizer_steps} optimizer steps of {update.optim.kind} "
        f"at {update.optim.learning_rate}, loss {update.loss.policy}",
        f"services: retriever {config.services.retriever}, generator {config.services.generator or 'none'}",
        f"engine: {config.engine.kind}; learner: {config.learner.device}, {config.learner.dtype}",
        f"files: {config.output}, a checkpoint every {config.checkpoints.every} steps, {config.checkpoints.keep} kept",
    ]
    return "\n".join(lines) + "\n"


def _reward(config: RunConfig) -> str:
    """Describe the reward, with its costs and penalty if its kind reads them."""
    reward = config.reward
    if not needs_generator(reward):
        return reward.kind
    costs = f"{reward.document_cost:g} of a success per document, {reward.search_cost:g} per search"
    mode = f" ({reward.gain_mode}, against {reward.baseline_file})" if reward.baseline_file else ""
    return f"{reward.kind}{mode}, less {costs}, less {reward.malformed_penalty:g} if badly formed"
