"""Checks that a server samples what the run trains on, at the start and after a push: a mistake shows late or never."""

from collections.abc import Sequence
from pathlib import Path

from searchrl.agent.types import Sampling
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import EngineOutOfDate
from services.trainer.engines.vllm.client import VllmClient
from services.trainer.engines.vllm.weight_transfer import StagedWeights, WeightTransfer

TOKENIZER_TEXT = "<think>Who wrote it, & when?</think>\n<search> \u00e9\u4e2d 1234 </search>"
"""Tags, digits, an accent and a character of three bytes: tokenizers that agree on it hardly differ elsewhere."""
HOT = Sampling(temperature=2.0, max_tokens=8, seed=1)
"""At temperature 2, the log-probabilities of tokens are far from those at temperature 1."""
EQUAL_NATS = 1e-3  # above rounding; the two differ by tenths unless the model is certain of every token
UNCHANGED_NATS = 1e-4
"""A change of the learner's log-probabilities above this must be seen in a server's, too: it is over ten times their
rounding in float32."""


async def check_server(client: VllmClient, transfer: WeightTransfer, model: Path, context_tokens: int) -> None:
    """Check the model's context, the tokenizer, the log-probabilities and the transfer of weights.

    Raises:
        ConfigurationError: the server was not started for this run.
    """
    try:
        context = await client.find_model()
        if context < context_tokens:
            raise ConfigurationError(
                f"{client.base_url} takes {context} tokens, and this searcher's limits.max_context_tokens is "
                f"{context_tokens}: raise max_model_len"
            )
        tokenizer = ModelTokenizer.from_folder(model)
        ids = await client.tokenize(TOKENIZER_TEXT)
        if ids != tokenizer.encode(TOKENIZER_TEXT):
            raise ConfigurationError(
                f"{client.base_url} has another tokenizer than {model}: its ids would be other text"
            )
        await _check_logprobs(client, tokenizer.encode(TOKENIZER_TEXT))
        await transfer.check(client)
    except ServiceError as error:
        raise ConfigurationError(f"{client.base_url} cannot be used: {error}") from error


async def _check_logprobs(client: VllmClient, prompt: list[int]) -> None:
    turn = await client.generate(prompt, HOT, "check", "check")
    scores = (await client.score([*prompt, *turn.ids]))[len(prompt) - 1 :]
    if turn.ids and all(abs(a - b) < EQUAL_NATS for a, b in zip(turn.logprobs, scores, strict=True)):
        raise ConfigurationError(
            f"{client.base_url} reports log-probabilities before temperature: start it with "
            "--logprobs-mode processed_logprobs"
        )


def check_scores(scores: Sequence[float], staged: StagedWeights, largest_difference: float) -> None:
    """Compare a server's log-probabilities of the probe with the learner's.

    Raises:
        EngineOutOfDate: their mean difference is over ``largest_difference`` nats per token.
    """
    if staged.probe is None:
        return
    difference = sum(abs(a - b) for a, b in zip(scores, staged.probe.logprobs, strict=True)) / len(scores)
    if not difference <= largest_difference:  # not ">": a NaN must be refused as well
        raise EngineOutOfDate(
            f"its log-probabilities differ by {difference:.4g} nats per token from the learner's at version "
            f"{staged.version}, over {largest_difference:g}"
        )


def check_equal_scores(before: StagedWeights, staged: StagedWeights) -> None:
    """Check that the learner's log-probabilities hardly changed either, after a server's did not change at all.

    Raises:
        EngineOutOfDate: they did, so the server still has the weights from before.
    """
    if before.probe is None or staged.probe is None:
        return
    moved = max(abs(a - b) for a, b in zip(before.probe.logprobs, staged.probe.logprobs, strict=True))
    if moved > UNCHANGED_NATS:
        raise EngineOutOfDate(
            f"its log-probabilities are still those of version {before.version}, although the learner's changed by up "
            f"to {moved:.2g} nats: the weights do not arrive"
        )
