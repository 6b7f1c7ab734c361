"""A policy with scripted turns, and a tokenizer of single characters."""

from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.agent.types import Generation, Sampling, Tokenizer


@dataclass(frozen=True)
class Call:
    """The arguments of one ``generate`` call."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    rollout_id: str


class ScriptedPolicy:
    """Returns the scripted turns in order and records the calls.

    A turn is text (encoded with the tokenizer), a list of ids, a finished ``Generation``, or an exception to raise.
    """

    def __init__(
        self, turns: Sequence[str | Sequence[int] | Generation | Exception], tokenizer: Tokenizer, version: int = 7
    ) -> None:
        self._turns = list(turns)
        self._tokenizer = tokenizer
        self._version = version
        self.calls: list[Call] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        self.calls.append(Call(tuple(prompt_ids), sampling, rollout_id))
        turn = self._turns[len(self.calls) - 1]
        if isinstance(turn, Exception):
            raise turn
        if isinstance(turn, Generation):
            return turn
        ids = tuple(self._tokenizer.encode(turn) if isinstance(turn, str) else turn)
        # Unequal values, so that a test notices log-probabilities in the wrong place.
        logprobs = tuple(-0.5 - 0.25 * (index % 3) for index in range(len(ids)))
        return Generation(ids, logprobs, (self._version,) * len(ids), "stop")


class CharacterTokenizer:
    """One id per character, so decode and encode are exact inverses. Id 0 ends a sequence and decodes to nothing."""

    eos_id = 0

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.rendered_prompts = 0

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return [ord(character) + 1 for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token_id - 1) for token_id in ids if token_id != self.eos_id)

    def render_prompt(self, text: str) -> list[int]:
        self.rendered_prompts += 1
        return self.encode(f"<user>{text}<assistant>")
